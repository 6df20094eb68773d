output "backup_url" {
  description = "KISEKI_BACKUP: where `kiseki backup` puts what it copies of journal and audit log."
  value       = "s3://${aws_s3_bucket.this["backups"].bucket}/journal?region=${var.region}&kms=${var.kms_key_arn}"
}

output "backup_keys_url" {
  description = "KISEKI_BACKUP_KEYS: where it puts copies of keys, which end within a week."
  value       = "s3://${aws_s3_bucket.this["private"].bucket}/keys?region=${var.region}&kms=${var.kms_key_arn}"
}

output "backup_read_models_url" {
  description = "KISEKI_BACKUP_READ_MODELS, for those who want copies of what can be built again: they end within a week too."
  value       = "s3://${aws_s3_bucket.this["private"].bucket}/read-models?region=${var.region}&kms=${var.kms_key_arn}"
}

output "bucket_names" {
  description = "The names of the buckets: backups (journal, audit log) and private (keys, read models)."
  value       = { for name, bucket in aws_s3_bucket.this : name => bucket.bucket }
}

output "bucket_arns" {
  description = "Their ARNs, for the policy of the role that makes backups."
  value       = { for name, bucket in aws_s3_bucket.this : name => bucket.arn }
}

output "access_log_bucket_name" {
  description = "The bucket with the logs of who used the others."
  value       = aws_s3_bucket.access_logs.bucket

  # Whoever lets S3 log into it needs S3 to be allowed to.
  depends_on = [aws_s3_bucket_policy.access_logs]
}

output "vault_name" {
  description = "The vault of AWS Backup."
  value       = aws_backup_vault.this.name
}

output "vault_arn" {
  description = "Its ARN."
  value       = aws_backup_vault.this.arn
}

output "copy_vault_arn" {
  description = "The vault in the other region; null without one."
  value       = one(aws_backup_vault.copy[*].arn)
}

output "plan_id" {
  description = "The plan of AWS Backup."
  value       = aws_backup_plan.this.id
}

output "restore_role_arn" {
  description = "The role that AWS Backup restores tables with; an operator names it when a restore is begun."
  value       = aws_iam_role.restore.arn
}
