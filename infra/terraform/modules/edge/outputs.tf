output "load_balancing" {
  description = "What the ECS service of each API (command-api, query-api) needs to know to be switched between its two target groups."
  value = {
    for api in keys(local.apis) : api => {
      target_group_arn           = aws_lb_target_group.this["${api}/blue"].arn
      alternate_target_group_arn = aws_lb_target_group.this["${api}/green"].arn
      production_rule_arn        = aws_lb_listener_rule.production[api].arn
      test_rule_arn              = aws_lb_listener_rule.test[api].arn
    }
  }
}

output "hosts" {
  description = "The public name of each API; together KISEKI_HOSTS."
  value       = { for api, one in local.apis : api => one.host }
}

output "urls" {
  description = "The URL of each API in production."
  value       = { for api, one in local.apis : api => "https://${one.host}" }
}

output "test_urls" {
  description = "The URL of each API through the test listener, which shows the new side during a release."
  value       = { for api, one in local.apis : api => "https://${one.host}:${var.ports.test}" }
}

output "arn" {
  description = "The load balancer."
  value       = aws_lb.this.arn
}

output "arn_suffix" {
  description = "The load balancer as metrics of CloudWatch name it (LoadBalancer)."
  value       = aws_lb.this.arn_suffix
}

output "dns_name" {
  description = "The load balancer's own name, for DNS that is kept elsewhere."
  value       = aws_lb.this.dns_name
}

output "zone_id" {
  description = "The hosted zone of that name, for alias records."
  value       = aws_lb.this.zone_id
}

output "security_group_id" {
  description = "The security group of the load balancer, from which alone the APIs can be reached."
  value       = aws_security_group.this.id
}

output "target_group_arn_suffixes" {
  description = "The target groups as metrics of CloudWatch name them (TargetGroup), by API and side (blue, green). Either side may be the live one."
  value = {
    for api in keys(local.apis) : api => {
      for side in local.sides : side => aws_lb_target_group.this["${api}/${side}"].arn_suffix
    }
  }
}

output "target_group_names" {
  description = "The names of the target groups, by API and side."
  value = {
    for api in keys(local.apis) : api => {
      for side in local.sides : side => local.target_groups["${api}/${side}"].name
    }
  }
}

output "production_listener_arn" {
  description = "The listener of port 443."
  value       = aws_lb_listener.production.arn
}

output "test_listener_arn" {
  description = "The listener of the test port."
  value       = aws_lb_listener.test.arn
}

output "certificate_arn" {
  description = "The certificate of both names, as an alarm on its last day needs it."
  value       = local.certificate_arn
}

output "web_acl_arn" {
  description = "The web ACL in front of the load balancer."
  value       = aws_wafv2_web_acl.this.arn
}

output "web_acl_name" {
  description = "The web ACL as metrics of CloudWatch name it (WebACL)."
  value       = local.web_acl_name
}

output "log_bucket" {
  description = "The bucket of the load balancer's logs."
  value       = aws_s3_bucket.logs.bucket
}
