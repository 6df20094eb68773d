# What is done by the clock, each as a task of its own from the definition of `backup`, with its own end: a copy that
# fails keeps nobody from removing copies whose time is over.

locals {
  schedules      = var.image == null ? {} : var.schedules
  schedule_names = { for name in keys(local.schedules) : name => "${var.name}-${name}" }
}

resource "aws_scheduler_schedule_group" "this" {
  name = var.name
  tags = var.tags
}

resource "aws_scheduler_schedule" "this" {
  for_each = local.schedules

  name                         = local.schedule_names[each.key]
  description                  = "kiseki ${join(" ", each.value.command)}"
  group_name                   = aws_scheduler_schedule_group.this.name
  schedule_expression          = each.value.expression
  schedule_expression_timezone = "UTC"
  state                        = "ENABLED"
  kms_key_arn                  = var.kms_key_arn

  flexible_time_window {
    mode = "OFF"
  }

  target {
    arn      = aws_ecs_cluster.this.arn
    role_arn = var.scheduler_role_arn

    ecs_parameters {
      task_definition_arn     = aws_ecs_task_definition.this["backup"].arn
      task_count              = 1
      launch_type             = "FARGATE"
      platform_version        = "LATEST"
      propagate_tags          = "TASK_DEFINITION"
      enable_ecs_managed_tags = true
      enable_execute_command  = false

      # What an event says of a task that ended, so that it can be told which one failed.
      group = local.schedule_names[each.key]

      network_configuration {
        subnets          = var.subnet_ids
        security_groups  = [aws_security_group.process["backup"].id]
        assign_public_ip = false
      }
    }

    input = jsonencode({
      containerOverrides = [{ name = local.container, command = each.value.command }]
    })

    # Only for a task that could not be started. What one does and fails at is tried again the next time, and the ages
    # of backups say when that was not enough.
    retry_policy {
      maximum_event_age_in_seconds = 3600
      maximum_retry_attempts       = 5
    }
  }

  # A release gives its own revision to the schedules, so that a copy is made by the program that wrote what is copied.
  lifecycle {
    ignore_changes = [target[0].ecs_parameters[0].task_definition_arn]
  }

  depends_on = [aws_ecs_cluster_capacity_providers.this]
}

# Nobody looks at a task that ended in the night, so it is told: an exit code other than 0, a task that never started,
# and a deployment that failed.
locals {
  failures = {
    tasks = jsonencode({
      source      = ["aws.ecs"]
      detail-type = ["ECS Task State Change"]
      detail = {
        clusterArn = [aws_ecs_cluster.this.arn]
        group = concat(
          ["family:${local.families.migrate}"],
          [for name, one in local.schedules : local.schedule_names[name] if one.told],
        )
        lastStatus = ["STOPPED"]
        "$or" = [
          { containers = { exitCode = [{ anything-but = [0] }] } },
          { stopCode = ["TaskFailedToStart"] },
        ]
      }
    })
    deployments = jsonencode({
      source      = ["aws.ecs"]
      detail-type = ["ECS Deployment State Change"]
      resources   = [for name in values(local.service_names) : { suffix = "service/${var.name}/${name}" }]
      detail      = { eventName = ["SERVICE_DEPLOYMENT_FAILED"] }
    })
  }

  told = merge([
    for failure in keys(local.failures) : {
      for topic, arn in var.alarm_topic_arns : "${failure}/${topic}" => { failure = failure, arn = arn }
    }
  ]...)
}

resource "aws_cloudwatch_event_rule" "failure" {
  for_each = local.failures

  name          = "${var.name}-failed-${each.key}"
  description   = "What failed: ${each.key}"
  event_pattern = each.value
  tags          = var.tags
}

resource "aws_cloudwatch_event_target" "failure" {
  for_each = local.told

  rule = aws_cloudwatch_event_rule.failure[each.value.failure].name
  arn  = each.value.arn

  retry_policy {
    maximum_event_age_in_seconds = 3600
    maximum_retry_attempts       = 10
  }
}
