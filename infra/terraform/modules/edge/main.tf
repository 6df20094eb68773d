# The way in: one load balancer with both APIs behind it by their names, a listener for everybody and one for tests, two
# target groups for each API, the certificate, the names, the web ACL and the logs. Used by the system; the services of
# the module compute are switched between the target groups.
#
# TLS ends here. The way on to the tasks is HTTP inside of the network, to security groups that let in nobody else
# (KISEKI_TLS_PROXY=true, KISEKI_TRUSTED_PROXIES = the public subnets).

locals {
  apis = {
    command-api = { host = "commands.${var.domain}", port = var.ports.command, short = "cmd", priority = 10 }
    query-api   = { host = "queries.${var.domain}", port = var.ports.query, short = "qry", priority = 20 }
  }
  sides = ["blue", "green"]

  target_groups = merge([
    for api, one in local.apis : {
      for side in local.sides : "${api}/${side}" => merge(one, { name = "${var.name}-${one.short}-${side}", side = side })
    }
  ]...)

  # ECS takes a task out when it ends it, and waits this long before it sends SIGTERM. The task then drains once more by
  # itself: a load balancer that has not heard of it yet still gets answers.
  deregistration_delay = var.timing.drain_delay
}

resource "aws_security_group" "this" {
  #checkov:skip=CKV2_AWS_5: it is the one of the load balancer below
  name        = "${var.name}-balancer"
  description = "The load balancer"
  vpc_id      = var.vpc_id

  tags = merge(var.tags, { Name = "${var.name}-balancer" })
}

resource "aws_vpc_security_group_ingress_rule" "https" {
  for_each = var.client_cidrs

  security_group_id = aws_security_group.this.id
  description       = "HTTPS"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  cidr_ipv4         = each.value
  tags              = var.tags
}

resource "aws_vpc_security_group_ingress_rule" "http" {
  #checkov:skip=CKV_AWS_260: this port answers with the address of the other one and nothing else
  for_each = var.client_cidrs

  security_group_id = aws_security_group.this.id
  description       = "HTTP, which is sent on to HTTPS"
  ip_protocol       = "tcp"
  from_port         = 80
  to_port           = 80
  cidr_ipv4         = each.value
  tags              = var.tags
}

resource "aws_vpc_security_group_ingress_rule" "test" {
  for_each = var.test_cidrs

  security_group_id = aws_security_group.this.id
  description       = "Tests of what is not released"
  ip_protocol       = "tcp"
  from_port         = var.ports.test
  to_port           = var.ports.test
  cidr_ipv4         = each.value
  tags              = var.tags
}

resource "aws_lb" "this" {
  #checkov:skip=CKV2_AWS_76: the web ACL has the rules of Log4j; the list of anonymous addresses that is asked for besides has those of hosting companies, from where honest programs call
  name               = var.name
  load_balancer_type = "application"
  internal           = false
  ip_address_type    = "ipv4"
  security_groups    = [aws_security_group.this.id]
  subnets            = var.subnet_ids

  # What two readers could read differently is refused here already, as the processes do it themselves.
  desync_mitigation_mode     = "strictest"
  drop_invalid_header_fields = true

  # The processes read X-Forwarded-For from the right, and addresses without ports.
  xff_header_processing_mode = "append"
  enable_xff_client_port     = false
  preserve_host_header       = true

  idle_timeout               = var.timing.idle_timeout
  enable_http2               = true
  enable_deletion_protection = var.deletion_protection
  enable_zonal_shift         = true
  enable_waf_fail_open       = false

  access_logs {
    bucket  = aws_s3_bucket.logs.bucket
    prefix  = local.log_prefixes.access
    enabled = true
  }

  connection_logs {
    bucket  = aws_s3_bucket.logs.bucket
    prefix  = local.log_prefixes.connections
    enabled = true
  }

  tags = var.tags

  # The load balancer tries to write into the bucket when its logs are switched on.
  depends_on = [aws_s3_bucket_policy.logs, aws_s3_bucket_server_side_encryption_configuration.logs]
}

resource "aws_lb_target_group" "this" {
  #checkov:skip=CKV_AWS_378: TLS ends at the load balancer; this way is inside of the network, between two security groups
  for_each = local.target_groups

  name             = each.value.name
  vpc_id           = var.vpc_id
  target_type      = "ip"
  ip_address_type  = "ipv4"
  port             = each.value.port
  protocol         = "HTTP"
  protocol_version = "HTTP1"

  deregistration_delay = local.deregistration_delay

  # Not by the least outstanding requests: a task that fails at once would have the fewest, and draw all of them.
  load_balancing_algorithm_type     = "weighted_random"
  load_balancing_anomaly_mitigation = "on"

  # About this process alone, so that an outage of a database does not take out every task.
  health_check {
    enabled             = true
    port                = tostring(var.ports.management)
    protocol            = "HTTP"
    path                = "/ready?scope=local"
    matcher             = "200"
    interval            = var.health_check.interval
    timeout             = var.health_check.timeout
    healthy_threshold   = var.health_check.successes
    unhealthy_threshold = var.health_check.failures
  }

  stickiness {
    enabled = false
    type    = "lb_cookie"
  }

  tags = merge(var.tags, { side = each.value.side })
}

resource "aws_lb_listener" "redirect" {
  load_balancer_arn = aws_lb.this.arn
  port              = 80
  protocol          = "HTTP"

  default_action {
    type = "redirect"

    redirect {
      port        = "443"
      protocol    = "HTTPS"
      status_code = "HTTP_301"
    }
  }

  routing_http_response_server_enabled = false
  tags                                 = var.tags
}

resource "aws_lb_listener" "production" {
  load_balancer_arn = aws_lb.this.arn
  port              = 443
  protocol          = "HTTPS"
  ssl_policy        = var.tls_policy
  certificate_arn   = local.certificate_arn

  # A name that nobody listed, as the processes answer it too.
  default_action {
    type = "fixed-response"

    fixed_response {
      content_type = "text/plain"
      message_body = "misdirected request"
      status_code  = "421"
    }
  }

  routing_http_response_server_enabled = false
  tags                                 = var.tags
}

resource "aws_lb_listener" "test" {
  load_balancer_arn = aws_lb.this.arn
  port              = var.ports.test
  protocol          = "HTTPS"
  ssl_policy        = var.tls_policy
  certificate_arn   = local.certificate_arn

  default_action {
    type = "fixed-response"

    fixed_response {
      content_type = "text/plain"
      message_body = "misdirected request"
      status_code  = "421"
    }
  }

  routing_http_response_server_enabled = false
  tags                                 = var.tags
}

resource "aws_lb_listener_rule" "production" {
  for_each = local.apis

  listener_arn = aws_lb_listener.production.arn
  priority     = each.value.priority

  condition {
    host_header {
      values = [each.value.host]
    }
  }

  # Both target groups, so that both belong to the load balancer and their tasks are asked for health.
  action {
    type = "forward"

    forward {
      target_group {
        arn    = aws_lb_target_group.this["${each.key}/blue"].arn
        weight = 100
      }

      target_group {
        arn    = aws_lb_target_group.this["${each.key}/green"].arn
        weight = 0
      }
    }
  }

  tags = merge(var.tags, { api = each.key })

  # ECS moves the weights with every release; what is live is not the infrastructure's to say.
  lifecycle {
    ignore_changes = [action]
  }
}

resource "aws_lb_listener_rule" "test" {
  for_each = local.apis

  listener_arn = aws_lb_listener.test.arn
  priority     = each.value.priority

  condition {
    host_header {
      values = [each.value.host]
    }
  }

  action {
    type = "forward"

    forward {
      target_group {
        arn    = aws_lb_target_group.this["${each.key}/blue"].arn
        weight = 100
      }

      target_group {
        arn    = aws_lb_target_group.this["${each.key}/green"].arn
        weight = 0
      }
    }
  }

  tags = merge(var.tags, { api = each.key })

  lifecycle {
    ignore_changes = [action]
  }
}
