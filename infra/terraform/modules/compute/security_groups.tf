# Who reaches whom: the load balancer the APIs; processes the endpoints of AWS and the databases; nobody else anybody.

locals {
  # The function that updates read models runs in the same network and needs the same ways out.
  clients = setunion(local.processes, ["updater-function"])

  prefix_lists = merge([
    for process in local.clients : { for service, id in var.prefix_list_ids : "${process}/${service}" => { process = process, id = id } }
  ]...)

  databases = merge([
    for process in local.clients : {
      for server, id in var.database_security_group_ids : "${process}/${server}" => { process = process, id = id }
    }
  ]...)

  collectors = merge([
    for process in local.services : {
      for name, id in var.collector_security_group_ids : "${process}/${name}" => { process = process, id = id }
    }
  ]...)
}

resource "aws_security_group" "process" {
  #checkov:skip=CKV2_AWS_5: they are those of the services and schedules here, of migrations that the command line starts, and of the function
  for_each = local.clients

  name        = "${var.name}-${each.key}"
  description = each.key
  vpc_id      = var.vpc_id

  tags = merge(var.tags, { Name = "${var.name}-${each.key}", process = each.key })
}

resource "aws_vpc_security_group_ingress_rule" "api" {
  for_each = local.api_ports

  security_group_id            = aws_security_group.process[each.key].id
  description                  = "Requests from the load balancer"
  ip_protocol                  = "tcp"
  from_port                    = each.value
  to_port                      = each.value
  referenced_security_group_id = var.balancer_security_group_id
  tags                         = var.tags
}

resource "aws_vpc_security_group_ingress_rule" "health" {
  for_each = local.api_ports

  security_group_id            = aws_security_group.process[each.key].id
  description                  = "Questions for health from the load balancer"
  ip_protocol                  = "tcp"
  from_port                    = var.ports.management
  to_port                      = var.ports.management
  referenced_security_group_id = var.balancer_security_group_id
  tags                         = var.tags
}

resource "aws_vpc_security_group_ingress_rule" "collector" {
  for_each = local.collectors

  security_group_id            = aws_security_group.process[each.value.process].id
  description                  = "Metrics for the collector"
  ip_protocol                  = "tcp"
  from_port                    = var.ports.management
  to_port                      = var.ports.management
  referenced_security_group_id = each.value.id
  tags                         = var.tags
}

resource "aws_vpc_security_group_egress_rule" "api" {
  for_each = local.api_ports

  security_group_id            = var.balancer_security_group_id
  description                  = "Requests to ${each.key}"
  ip_protocol                  = "tcp"
  from_port                    = each.value
  to_port                      = each.value
  referenced_security_group_id = aws_security_group.process[each.key].id
  tags                         = var.tags
}

resource "aws_vpc_security_group_egress_rule" "health" {
  for_each = local.api_ports

  security_group_id            = var.balancer_security_group_id
  description                  = "Questions for health to ${each.key}"
  ip_protocol                  = "tcp"
  from_port                    = var.ports.management
  to_port                      = var.ports.management
  referenced_security_group_id = aws_security_group.process[each.key].id
  tags                         = var.tags
}

resource "aws_vpc_security_group_egress_rule" "endpoints" {
  for_each = local.clients

  security_group_id            = aws_security_group.process[each.key].id
  description                  = "Interface endpoints of AWS"
  ip_protocol                  = "tcp"
  from_port                    = 443
  to_port                      = 443
  referenced_security_group_id = var.endpoint_security_group_id
  tags                         = var.tags
}

resource "aws_vpc_security_group_egress_rule" "gateways" {
  for_each = local.prefix_lists

  security_group_id = aws_security_group.process[each.value.process].id
  description       = "Gateway endpoints of AWS"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  prefix_list_id    = each.value.id
  tags              = var.tags
}

resource "aws_vpc_security_group_egress_rule" "database" {
  for_each = local.databases

  security_group_id            = aws_security_group.process[each.value.process].id
  description                  = "PostgreSQL"
  ip_protocol                  = "tcp"
  from_port                    = var.ports.database
  to_port                      = var.ports.database
  referenced_security_group_id = each.value.id
  tags                         = var.tags
}

resource "aws_vpc_security_group_egress_rule" "rate_store" {
  for_each = local.api_ports

  security_group_id            = aws_security_group.process[each.key].id
  description                  = "The rate store"
  ip_protocol                  = "tcp"
  from_port                    = var.ports.rate_store
  to_port                      = var.ports.rate_store
  referenced_security_group_id = var.rate_store_security_group_id
  tags                         = var.tags
}

resource "aws_vpc_security_group_egress_rule" "internet" {
  for_each = var.internet

  security_group_id = aws_security_group.process[each.value].id
  description       = "HTTPS to what is outside of AWS or of the region"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  cidr_ipv4         = "0.0.0.0/0"
  tags              = var.tags
}
