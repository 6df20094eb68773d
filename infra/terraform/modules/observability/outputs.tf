output "topic_arn" {
  description = "The topic that alarms are sent to."
  value       = aws_sns_topic.alarms[var.region].arn

  # AWS Backup refuses a topic that it can't publish to.
  depends_on = [aws_sns_topic_policy.alarms]
}

output "topic_arns" {
  description = "The topic of each region that has alarms."
  value       = { for region, topic in aws_sns_topic.alarms : region => topic.arn }
}

output "alarm_names" {
  description = "The names of all alarms, by what they are about."
  value       = { for alarm, made in aws_cloudwatch_metric_alarm.this : alarm => made.alarm_name }
}

output "deployment_alarm_names" {
  description = "The alarms that roll back a deployment, by service: those that a new revision alone can set off."
  value = merge(
    {
      for api in keys(var.target_groups) :
      api => [for about in ["errors", "p99"] : aws_cloudwatch_metric_alarm.this["${api}-${about}"].alarm_name]
    },
    contains(keys(var.services), "updater") ? {
      updater = [aws_cloudwatch_metric_alarm.this["parked"].alarm_name]
    } : {},
  )
}

output "function_alarm_names" {
  description = "The alarms that bring back the function's last version while the command line moves the alias; empty without a function."
  value = [
    for about in ["function-errors", "function-parked", "function-redelivered"] :
    aws_cloudwatch_metric_alarm.this[about].alarm_name if var.updater_function != null
  ]
}

output "dashboard_name" {
  description = "The dashboard."
  value       = aws_cloudwatch_dashboard.this.dashboard_name
}

output "metric_names" {
  description = "The names of the service's own metrics that alarms and the dashboard look at, by what writes them."
  value       = local.metrics
}
