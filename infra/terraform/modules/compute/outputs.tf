output "cluster_name" {
  description = "The cluster, by name."
  value       = aws_ecs_cluster.this.name
}

output "cluster_arn" {
  description = "The cluster."
  value       = aws_ecs_cluster.this.arn
}

output "service_names" {
  description = "The name of each service: command-api, query-api, updater. The services need not be there yet."
  value       = local.service_names
}

output "task_families" {
  description = "The family of task definitions of each process."
  value       = local.families
}

output "task_definition_arns" {
  description = "The task definition of each process as the infrastructure made it; a release takes the newest with the tag kiseki-template and puts its own image in."
  value       = { for process, one in aws_ecs_task_definition.this : process => one.arn }
}

output "container_name" {
  description = "The name of the one container in every task."
  value       = local.container
}

output "environment" {
  description = "The whole environment of each process, with what was added here."
  value       = local.environment
}

output "repository_name" {
  description = "The repository of the image."
  value       = aws_ecr_repository.this.name
}

output "repository_url" {
  description = "Where the image is pushed to."
  value       = aws_ecr_repository.this.repository_url
}

output "repository_arn" {
  description = "The repository of the image, for policies."
  value       = aws_ecr_repository.this.arn
}

output "log_group_names" {
  description = "The log group of each process."
  value       = { for process, one in aws_cloudwatch_log_group.process : process => one.name }
}

output "schedule_names" {
  description = "The schedules whose task definition the command line renews with a release, by what they do."
  value       = local.schedule_names
}

output "schedule_group_name" {
  description = "The group that the schedules are in."
  value       = aws_scheduler_schedule_group.this.name
}

output "tasks" {
  description = "How many tasks each service may have, for `kiseki scale plan`."
  value = merge(var.scaling, {
    updater = { minimum = var.updater_tasks, maximum = var.updater_tasks }
  })
}

output "security_group_ids" {
  description = "The security group of each process, also of updater-function, which is a function and made elsewhere."
  value       = { for process, one in aws_security_group.process : process => one.id }
}
