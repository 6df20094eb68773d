output "vpc_id" {
  description = "The network."
  value       = aws_vpc.this.id
}

output "vpc_cidr" {
  description = "The addresses of the network."
  value       = aws_vpc.this.cidr_block
}

output "zones" {
  description = "The availability zones, in the order of the subnets."
  value       = var.zones
}

output "public_subnet_ids" {
  description = "The subnets of the load balancer and of nothing else, one in each zone."
  value       = [for zone in var.zones : aws_subnet.public[zone].id]
}

output "public_subnet_cidrs" {
  description = "Their addresses: the only ones that forwarding headers are believed from (KISEKI_TRUSTED_PROXIES)."
  value       = [for zone in var.zones : local.public_cidrs[zone]]
}

output "private_subnet_ids" {
  description = "The subnets of the processes, one in each zone."
  value       = [for zone in var.zones : aws_subnet.private[zone].id]
}

output "private_subnet_cidrs" {
  description = "Their addresses."
  value       = [for zone in var.zones : local.private_cidrs[zone]]
}

output "isolated_subnet_ids" {
  description = "The subnets of databases, one in each zone: no route leads out of the network."
  value       = [for zone in var.zones : aws_subnet.isolated[zone].id]
}

output "isolated_subnet_cidrs" {
  description = "Their addresses."
  value       = [for zone in var.zones : local.isolated_cidrs[zone]]
}

output "endpoint_security_group_id" {
  description = "The security group of the interface endpoints: what processes are let out to on port 443."
  value       = aws_security_group.endpoints.id
}

output "prefix_list_ids" {
  description = "The prefix lists of the gateway endpoints (s3, dynamodb): what else processes are let out to on port 443."
  value       = { for service, endpoint in aws_vpc_endpoint.gateway : service => endpoint.prefix_list_id }
}

output "nat_addresses" {
  description = "The public addresses that requests come from where there is a way out; empty without."
  value       = [for address in aws_eip.nat : address.public_ip]
}
