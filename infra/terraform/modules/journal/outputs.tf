output "prefix" {
  description = "The prefix of the tables, as the URLs of the settings have it."
  value       = var.name
}

output "table_names" {
  description = "The full name of each table, by its name in the code."
  value       = { for name, table in aws_dynamodb_table.this : name => table.name }
}

output "table_arns" {
  description = "The ARN of each table, by its name in the code."
  value       = { for name, table in aws_dynamodb_table.this : name => table.arn }
}

output "stream_arn" {
  description = "The stream of the journal: what the Lambda updater's event source mapping reads."
  value       = aws_dynamodb_table.this["journal"].stream_arn
}

output "index_names" {
  description = "The names of the indexes of each table that has some, for alarms on throttles."
  value       = { for name, table in local.tables : name => [table.index.name] if table.index != null }
}

output "lease_table_name" {
  description = "The table of the lease; null with one region."
  value       = one(aws_dynamodb_table.leases[*].name)
}

output "lease_table_arn" {
  description = "The ARN of the table of the lease; null with one region."
  value       = one(aws_dynamodb_table.leases[*].arn)
}
