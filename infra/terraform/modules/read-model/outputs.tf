output "host" {
  description = "The name of the server, as IAM tokens and certificates have it."
  value       = aws_db_instance.this.address
}

output "port" {
  description = "Its port."
  value       = local.port
}

output "urls" {
  description = "The URL of each database for the settings: KISEKI_READ_MODEL, KISEKI_AUDIT_DATABASE, KISEKI_AUDIT_ANCHORS."
  value = {
    for database, role in var.databases : database => format(
      "postgresql://%s@%s:%d/%s?sslmode=verify-full&sslrootcert=%s&auth=aws-iam&region=%s",
      role, aws_db_instance.this.address, local.port, database, var.certificates_path, var.region
    )
  }
}

output "admin_url" {
  description = "What `kiseki database prepare --admin` is given: the master user, with a reference to the secret of RDS."
  value = format(
    "postgresql://%s@%s:%d/postgres?sslmode=verify-full&sslrootcert=%s&password=%s",
    aws_db_instance.this.username, aws_db_instance.this.address, local.port, var.certificates_path,
    urlencode("aws-sm://${local.master_secret_arn}?region=${var.region}#password")
  )
}

output "roles" {
  description = "The role that owns each database, by database."
  value       = var.databases
}

output "resource_id" {
  description = "The id of the database that IAM policies name (rds-db:connect)."
  value       = aws_db_instance.this.resource_id
}

output "instance_id" {
  description = "The identifier of the instance: for alarms, and for `kiseki scale show --instance`."
  value       = aws_db_instance.this.identifier
}

output "instance_arn" {
  description = "Its ARN."
  value       = aws_db_instance.this.arn
}

output "scale_limit" {
  description = "What `kiseki scale plan --limit` is given: the maximum of connections where it is set, else the class."
  value       = var.max_connections == null ? var.instance_class : tostring(var.max_connections)
}

output "master_secret_arn" {
  description = "The secret of the master user, which RDS makes and rotates unless there is a replica. No process reads it."
  value       = local.master_secret_arn
}

output "security_group_id" {
  description = "The security group of the database: what processes are let out to on its port."
  value       = aws_security_group.this.id
}

output "log_group_names" {
  description = "The log groups of the server."
  value       = [for group in aws_cloudwatch_log_group.this : group.name]
}

output "replica_host" {
  description = "The name of the replica's server; null without one."
  value       = one(aws_db_instance.replica[*].address)
}

output "replica_instance_id" {
  description = "The identifier of the replica, for the alarm on its delay; null without one."
  value       = one(aws_db_instance.replica[*].identifier)
}
