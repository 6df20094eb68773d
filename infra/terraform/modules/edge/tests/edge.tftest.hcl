# The way in, without AWS: what is made, what fits together, and what is refused.

mock_provider "aws" {
  mock_resource "aws_lb" {
    defaults = {
      arn      = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:loadbalancer/app/shop-test/0123456789abcdef"
      dns_name = "shop-test-1.eu-central-1.elb.amazonaws.com"
    }
  }

  mock_resource "aws_lb_target_group" {
    defaults = { arn = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:targetgroup/mock/0123456789abcdef" }
  }

  mock_resource "aws_lb_listener" {
    defaults = { arn = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:listener/app/mock/0123456789abcdef/0123456789abcdef" }
  }

  mock_resource "aws_wafv2_web_acl" {
    defaults = { arn = "arn:aws:wafv2:eu-central-1:123456789012:regional/webacl/mock/00000000-0000-0000-0000-000000000000" }
  }

  mock_resource "aws_cloudwatch_log_group" {
    defaults = { arn = "arn:aws:logs:eu-central-1:123456789012:log-group:mock" }
  }
}

variables {
  name            = "shop-test"
  account_id      = "123456789012"
  region          = "eu-central-1"
  vpc_id          = "vpc-1"
  subnet_ids      = ["subnet-1", "subnet-2", "subnet-3"]
  domain          = "shop.example.com"
  certificate_arn = "arn:aws:acm:eu-central-1:123456789012:certificate/1"
  kms_key_arn     = "arn:aws:kms:eu-central-1:123456789012:key/1"
}

run "requests_are_read_in_one_way" {
  command = plan

  assert {
    condition     = aws_lb.this.desync_mitigation_mode == "strictest" && aws_lb.this.drop_invalid_header_fields
    error_message = "What two readers could read differently has to be refused."
  }

  assert {
    condition     = aws_lb.this.xff_header_processing_mode == "append" && !aws_lb.this.enable_xff_client_port
    error_message = "The processes read X-Forwarded-For from the right, without ports."
  }

  assert {
    condition     = aws_lb.this.enable_deletion_protection && !aws_lb.this.enable_waf_fail_open
    error_message = "The load balancer is protected, and lets nothing past a WAF that does not answer."
  }
}

run "only_tls_1_3" {
  command = plan

  assert {
    condition     = alltrue([for listener in [aws_lb_listener.production, aws_lb_listener.test] : listener.ssl_policy == "ELBSecurityPolicy-TLS13-1-3-2021-06" && listener.protocol == "HTTPS"])
    error_message = "Both listeners speak TLS 1.3 alone unless told otherwise."
  }

  assert {
    condition     = aws_lb_listener.redirect.default_action[0].type == "redirect" && aws_lb_listener.redirect.default_action[0].redirect[0].protocol == "HTTPS"
    error_message = "HTTP answers with the address of HTTPS and nothing else."
  }

  assert {
    condition     = alltrue([for listener in [aws_lb_listener.production, aws_lb_listener.test] : listener.default_action[0].fixed_response[0].status_code == "421"])
    error_message = "A name that nobody listed reaches no task."
  }
}

run "each_api_has_two_sides_on_both_listeners" {
  command = apply

  assert {
    condition = toset(keys(aws_lb_target_group.this)) == toset([
      "command-api/blue", "command-api/green", "query-api/blue", "query-api/green",
    ])
    error_message = "There are two target groups for each API."
  }

  assert {
    condition     = alltrue([for one in aws_lb_target_group.this : length(one.name) <= 32 && startswith(one.name, "shop-test-")])
    error_message = "A name of a target group has at most 32 characters, and begins with the name of the environment."
  }

  assert {
    condition     = aws_lb_target_group.this["command-api/green"].port == 18080 && aws_lb_target_group.this["query-api/green"].port == 18082
    error_message = "Target groups have the ports of the processes."
  }

  assert {
    condition = alltrue([
      for api in ["command-api", "query-api"] : alltrue([
        for rule in [aws_lb_listener_rule.production[api], aws_lb_listener_rule.test[api]] :
        length(rule.action[0].forward[0].target_group) == 2
      ])
    ])
    error_message = "Both sides belong to the rules of both listeners, or a side would have no health."
  }

  assert {
    condition     = output.hosts == { command-api = "commands.shop.example.com", query-api = "queries.shop.example.com" }
    error_message = "The names are commands. and queries. of the domain."
  }

  assert {
    condition     = output.test_urls.query-api == "https://queries.shop.example.com:8443"
    error_message = "The test listener is on its own port."
  }
}

run "health_is_local_and_noticed_in_time" {
  command = plan

  assert {
    condition = alltrue([
      for one in aws_lb_target_group.this :
      one.health_check[0].path == "/ready?scope=local" && one.health_check[0].port == "8558" && one.deregistration_delay == "30"
    ])
    error_message = "The health of a task is its own, asked on the management port, and its drain is as long as the processes'."
  }

  assert {
    condition     = aws_lb.this.idle_timeout == 60
    error_message = "The load balancer gives up idle connections before the processes (75 s) do."
  }
}

run "the_test_listener_is_for_nobody_unless_told" {
  command = plan

  assert {
    condition     = length(aws_vpc_security_group_ingress_rule.test) == 0
    error_message = "Without test_cidrs nobody reaches what is not released."
  }
}

run "the_test_listener_is_for_those_who_test" {
  command = plan

  variables {
    test_cidrs = ["203.0.113.7/32"]
  }

  assert {
    condition     = one([for rule in aws_vpc_security_group_ingress_rule.test : "${rule.from_port} ${rule.cidr_ipv4}"]) == "8443 203.0.113.7/32"
    error_message = "Those who test reach the test port alone."
  }
}

run "the_bucket_takes_logs_of_this_load_balancer_alone" {
  command = apply

  assert {
    condition     = aws_s3_bucket.logs.bucket == "shop-test-alb-123456789012-eu-central-1"
    error_message = "The name of the bucket is unique in the world."
  }

  assert {
    condition = alltrue([
      for statement in jsondecode(aws_s3_bucket_policy.logs.policy).Statement : statement.Effect == "Deny" || (
        statement.Principal.Service == "logdelivery.elasticloadbalancing.amazonaws.com" &&
        strcontains(statement.Condition.ArnLike["aws:SourceArn"], ":123456789012:loadbalancer/app/shop-test/")
      )
    ])
    error_message = "Only this load balancer writes into the bucket."
  }

  assert {
    condition     = one(one(aws_s3_bucket_server_side_encryption_configuration.logs.rule).apply_server_side_encryption_by_default).sse_algorithm == "AES256"
    error_message = "A load balancer writes only into buckets with keys of S3."
  }
}

run "the_waf_blocks_what_no_good_request_has" {
  command = plan

  assert {
    condition     = length(aws_wafv2_web_acl.this.rule) == 4
    error_message = "There are four rules: floods, bad addresses, known attacks, common attacks."
  }

  assert {
    condition = alltrue([
      for rule in aws_wafv2_web_acl.this.rule : length(rule.override_action) == 0 || length(rule.override_action[0].count) == 0
    ])
    error_message = "Rules block unless told to count."
  }

  assert {
    condition     = contains(keys(local.counted_rules), "SizeRestrictions_BODY")
    error_message = "Documents may have more than 8 KB."
  }

  assert {
    condition     = contains([for one in aws_wafv2_web_acl_logging_configuration.this.redacted_fields : one.single_header[0].name if length(one.single_header) > 0], "authorization")
    error_message = "Tokens are in no log."
  }
}

run "trying_the_waf_out_still_blocks_known_attacks" {
  command = plan

  variables {
    waf = { count_only = true }
  }

  assert {
    condition = [
      for rule in aws_wafv2_web_acl.this.rule : rule.name if length(rule.override_action) > 0 && length(rule.override_action[0].none) > 0
    ] == ["known-bad-inputs"]
    error_message = "Only known attacks are blocked while the rest is tried out."
  }
}

run "a_certificate_is_made_and_proved_in_the_zone" {
  command = plan

  variables {
    certificate_arn = null
    zone_id         = "Z123"
  }

  assert {
    condition     = length(aws_acm_certificate.this) == 1 && length(aws_route53_record.proof) == 2 && length(aws_route53_record.api) == 2
    error_message = "With a zone there is a certificate with its proofs, and both names."
  }

  assert {
    condition     = aws_acm_certificate.this[0].domain_name == "commands.shop.example.com" && contains(aws_acm_certificate.this[0].subject_alternative_names, "queries.shop.example.com")
    error_message = "The certificate is for both names."
  }
}

run "dns_may_be_kept_elsewhere" {
  command = plan

  assert {
    condition     = length(aws_acm_certificate.this) == 0 && length(aws_route53_record.api) == 0
    error_message = "With a certificate and without a zone nothing is made of either."
  }
}

run "neither_zone_nor_certificate_is_refused" {
  command = plan

  variables {
    certificate_arn = null
  }

  expect_failures = [var.certificate_arn]
}

run "a_test_listener_for_everybody_is_refused" {
  command = plan

  variables {
    test_cidrs = ["0.0.0.0/0"]
  }

  expect_failures = [var.test_cidrs]
}

run "an_idle_time_out_above_keep_alive_is_refused" {
  command = plan

  variables {
    timing = { idle_timeout = 80 }
  }

  expect_failures = [var.timing]
}

run "a_drain_shorter_than_requests_is_refused" {
  command = plan

  variables {
    timing       = { drain_delay = 5 }
    health_check = { interval = 2, timeout = 1 }
  }

  expect_failures = [var.timing]
}

run "a_health_check_slower_than_the_drain_is_refused" {
  command = plan

  variables {
    health_check = { interval = 30 }
  }

  expect_failures = [var.health_check]
}

run "an_old_tls_policy_is_refused" {
  command = plan

  variables {
    tls_policy = "ELBSecurityPolicy-2016-08"
  }

  expect_failures = [var.tls_policy]
}

run "a_name_too_long_for_target_groups_is_refused" {
  command = plan

  variables {
    name = "a-project-with-a-long-name"
  }

  expect_failures = [var.name]
}
