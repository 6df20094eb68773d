output "host" {
  description = "The name of the node that writes, whichever that is."
  value       = aws_elasticache_replication_group.this.primary_endpoint_address
}

output "port" {
  description = "Its port."
  value       = local.port
}

output "replication_group_id" {
  description = "The identifier of the store, for alarms."
  value       = aws_elasticache_replication_group.this.id
}

output "security_group_id" {
  description = "The security group of the store: what processes are let out to on its port."
  value       = aws_security_group.this.id
}

output "log_group_names" {
  description = "The log groups of the store."
  value       = [for group in aws_cloudwatch_log_group.this : group.name]
}
