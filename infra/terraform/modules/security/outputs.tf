output "role_arns" {
  description = "The role of each process: command-api, query-api, updater, updater-function, migrate, backup, operator."
  value       = { for process, role in aws_iam_role.process : process => role.arn }

  # Whoever uses a role needs what it may do.
  depends_on = [aws_iam_role_policy.process, aws_iam_role_policy_attachment.operator]
}

output "role_names" {
  description = "The name of the role of each process."
  value       = { for process, role in aws_iam_role.process : process => role.name }
}

output "execution_role_arns" {
  description = "The role with which ECS starts each process that is a task: it pulls the image and writes the log."
  value       = { for process, role in aws_iam_role.execution : process => role.arn }

  # Whoever uses a role needs what it may do.
  depends_on = [aws_iam_role_policy.execution]
}

output "infrastructure_role_arn" {
  description = "The role with which ECS switches the load balancer between blue and green."
  value       = aws_iam_role.infrastructure.arn

  # Whoever uses a role needs what it may do.
  depends_on = [aws_iam_role_policy.infrastructure]
}

output "scheduler_role_arn" {
  description = "The role with which EventBridge Scheduler starts the task of the daily backup."
  value       = aws_iam_role.scheduler.arn

  # Whoever uses a role needs what it may do.
  depends_on = [aws_iam_role_policy.scheduler]
}

output "operators_role_arn" {
  description = "The role that people take to run one-off tasks; null without operator_principals."
  value       = one(aws_iam_role.operators[*].arn)
}

output "data_key_arn" {
  description = "The KMS key that everything at rest in the region is encrypted with."
  value       = aws_kms_key.data.arn
}

output "data_key_arns" {
  description = "The same for each region, the replica regions too."
  value       = local.data_keys
}

output "master_key_arn" {
  description = "The KMS key that wraps the keys of people."
  value       = aws_kms_key.master.arn
}

output "master_key_url" {
  description = "KISEKI_MASTER_KEY of the processes in the region."
  value       = local.master_key_urls[var.region]
}

output "master_key_urls" {
  description = "KISEKI_MASTER_KEY of the processes in each region."
  value       = local.master_key_urls
}

output "secret_names" {
  description = "The name of each secret: audit, rate-store and, if there is one, token."
  value       = { for secret, made in aws_secretsmanager_secret.this : secret => made.name }
}

output "secret_arns" {
  description = "The ARN of each secret."
  value       = { for secret, made in aws_secretsmanager_secret.this : secret => made.arn }
}

output "secret_urls" {
  description = "What the settings KISEKI_AUDIT_KEY, KISEKI_RATE_STORE and KISEKI_TOKEN_SECRET are, by secret: each is a JSON object with the one field `value`."
  value       = { for secret, made in aws_secretsmanager_secret.this : secret => "aws-sm://${made.name}?region=${var.region}#value" }
}

output "log_group_names" {
  description = "The log group that each process is allowed to write to."
  value       = local.log_groups
}

output "policies" {
  description = "The policy of each process as JSON."
  value       = local.policies
}

output "key_policies" {
  description = "The policy of each key of the region, as JSON."
  value       = { data = jsonencode(local.data_key_policies[var.region]), master = jsonencode(local.master_key_policy) }
}

output "operators_policy" {
  description = "The policy of the role that people take, as JSON."
  value       = jsonencode(local.operating)
}
