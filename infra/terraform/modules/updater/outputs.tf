output "function_name" {
  description = "The name of the function; null without one."
  value       = one(aws_lambda_function.this[*].function_name)
}

output "function_arn" {
  description = "The ARN of the function, without a version; null without one."
  value       = one(aws_lambda_function.this[*].arn)
}

output "alias_name" {
  description = "The alias that the mapping invokes, and that the command line moves from version to version; null without a function."
  value       = one(aws_lambda_alias.live[*].name)
}

output "alias_arn" {
  description = "The ARN of the alias; null without a function."
  value       = one(aws_lambda_alias.live[*].arn)
}

output "mapping_uuid" {
  description = "The event source mapping: what the metrics of what it read, dropped and sent to the failure bucket are named by; null without a function."
  value       = one(aws_lambda_event_source_mapping.journal[*].uuid)
}

output "reserved_concurrency" {
  description = "Environments of the function at a time, at most: what `kiseki scale plan --tasks lambda=0-N` has to know."
  value       = length(aws_lambda_function.this) == 0 ? 0 : var.reserved_concurrency
}

output "artefact_bucket" {
  description = "The name of the bucket of packages."
  value       = aws_s3_bucket.this["artefacts"].bucket
}

output "artefact_bucket_arn" {
  description = "The ARN of the bucket of packages."
  value       = aws_s3_bucket.this["artefacts"].arn
}

output "failure_bucket" {
  description = "The name of the bucket of records that were given up."
  value       = aws_s3_bucket.this["failures"].bucket
}

output "failure_bucket_arn" {
  description = "The ARN of the bucket of records that were given up."
  value       = aws_s3_bucket.this["failures"].arn
}

output "log_group_name" {
  description = "The log group of the function."
  value       = aws_cloudwatch_log_group.function.name
}
