# What is stopped before it costs a task anything. A WAF sees the first 8 KB of a body behind this kind of load balancer,
# so it is a sieve in front of the application's limits and never instead of them.

locals {
  web_acl_name = "${var.name}-apis"

  # Rules that good requests of GraphQL meet. They count, so that a flood of matches can still be seen.
  counted_rules = merge(
    {
      # Documents and variables may have 64 KB (KISEKI_BODY_LIMIT), and the application says 413 beyond it.
      SizeRestrictions_BODY = "bodies over 8 KB are ordinary"
      # JSON escapes, and text of people such as <3 or a name in brackets. Nothing here shows text as a page without encoding it.
      CrossSiteScripting_BODY = "text is data and is encoded where it is shown"
      # An address in a text: no process fetches what a client names.
      GenericRFI_BODY      = "no process fetches what a client names"
      EC2MetaDataSSRF_BODY = "no process fetches what a client names"
      # Two dots and a slash in a text: no process opens a file that a client names.
      GenericLFI_BODY = "no process opens a file that a client names"
      # Programs of good people need not say what they are.
      NoUserAgent_HEADER = "clients are programs"
    },
    { for rule in var.waf.counted_rules : rule => "by the settings of this environment" },
  )
}

resource "aws_wafv2_web_acl" "this" {
  name        = local.web_acl_name
  description = "In front of both APIs"
  scope       = "REGIONAL"

  default_action {
    allow {}
  }

  # The application's own limit is lower and says when to come again; this one is for those who do not listen.
  rule {
    name     = "flood"
    priority = 0

    action {
      dynamic "count" {
        for_each = var.waf.count_only ? [1] : []
        content {}
      }

      dynamic "block" {
        for_each = var.waf.count_only ? [] : [1]

        content {
          custom_response {
            response_code = 429

            response_header {
              name  = "Retry-After"
              value = "60"
            }
          }
        }
      }
    }

    statement {
      rate_based_statement {
        limit                 = var.waf.requests_per_minute
        evaluation_window_sec = 60
        aggregate_key_type    = "IP"
      }
    }

    visibility_config {
      cloudwatch_metrics_enabled = true
      metric_name                = "${local.web_acl_name}-flood"
      sampled_requests_enabled   = true
    }
  }

  rule {
    name     = "ip-reputation"
    priority = 10

    override_action {
      dynamic "count" {
        for_each = var.waf.count_only ? [1] : []
        content {}
      }

      dynamic "none" {
        for_each = var.waf.count_only ? [] : [1]
        content {}
      }
    }

    statement {
      managed_rule_group_statement {
        vendor_name = "AWS"
        name        = "AWSManagedRulesAmazonIpReputationList"
      }
    }

    visibility_config {
      cloudwatch_metrics_enabled = true
      metric_name                = "${local.web_acl_name}-ip-reputation"
      sampled_requests_enabled   = true
    }
  }

  # Nobody who is honest sends what these find, so there is nothing to try out.
  rule {
    name     = "known-bad-inputs"
    priority = 20

    override_action {
      none {}
    }

    statement {
      managed_rule_group_statement {
        vendor_name = "AWS"
        name        = "AWSManagedRulesKnownBadInputsRuleSet"
      }
    }

    visibility_config {
      cloudwatch_metrics_enabled = true
      metric_name                = "${local.web_acl_name}-known-bad-inputs"
      sampled_requests_enabled   = true
    }
  }

  rule {
    name     = "common"
    priority = 30

    override_action {
      dynamic "count" {
        for_each = var.waf.count_only ? [1] : []
        content {}
      }

      dynamic "none" {
        for_each = var.waf.count_only ? [] : [1]
        content {}
      }
    }

    statement {
      managed_rule_group_statement {
        vendor_name = "AWS"
        name        = "AWSManagedRulesCommonRuleSet"

        dynamic "rule_action_override" {
          for_each = local.counted_rules

          content {
            name = rule_action_override.key

            action_to_use {
              count {}
            }
          }
        }
      }
    }

    visibility_config {
      cloudwatch_metrics_enabled = true
      metric_name                = "${local.web_acl_name}-common"
      sampled_requests_enabled   = true
    }
  }

  # Of samples and logs alike: a token is good for an hour, and a query by GET may hold an address of a person.
  data_protection_config {
    data_protection {
      action = "SUBSTITUTION"

      field {
        field_type = "SINGLE_HEADER"
        field_keys = ["authorization"]
      }
    }

    data_protection {
      action = "SUBSTITUTION"

      field {
        field_type = "QUERY_STRING"
      }
    }
  }

  visibility_config {
    cloudwatch_metrics_enabled = true
    metric_name                = local.web_acl_name
    sampled_requests_enabled   = true
  }

  tags = var.tags
}

resource "aws_wafv2_web_acl_association" "this" {
  resource_arn = aws_lb.this.arn
  web_acl_arn  = aws_wafv2_web_acl.this.arn
}

resource "aws_cloudwatch_log_group" "waf" {
  # WAF writes only to groups whose names begin so.
  name              = "aws-waf-logs-${var.name}"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.kms_key_arn
  tags              = var.tags
}

resource "aws_cloudwatch_log_resource_policy" "waf" {
  policy_name = "${var.name}-waf"

  policy_document = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "TheWebAclWrites"
      Effect    = "Allow"
      Principal = { Service = "delivery.logs.amazonaws.com" }
      Action    = ["logs:CreateLogStream", "logs:PutLogEvents"]
      Resource  = "${aws_cloudwatch_log_group.waf.arn}:*"
      Condition = {
        ArnLike      = { "aws:SourceArn" = "arn:${var.partition}:logs:${var.region}:${var.account_id}:*" }
        StringEquals = { "aws:SourceAccount" = var.account_id }
      }
    }]
  })
}

resource "aws_wafv2_web_acl_logging_configuration" "this" {
  resource_arn            = aws_wafv2_web_acl.this.arn
  log_destination_configs = [aws_cloudwatch_log_group.waf.arn]

  redacted_fields {
    single_header {
      name = "authorization"
    }
  }

  redacted_fields {
    single_header {
      name = "cookie"
    }
  }

  redacted_fields {
    query_string {}
  }

  # What was let through is in the load balancer's log.
  logging_filter {
    default_behavior = "DROP"

    filter {
      behavior    = "KEEP"
      requirement = "MEETS_ANY"

      condition {
        action_condition {
          action = "BLOCK"
        }
      }

      condition {
        action_condition {
          action = "COUNT"
        }
      }

      condition {
        action_condition {
          action = "EXCLUDED_AS_COUNT"
        }
      }
    }
  }

  depends_on = [aws_cloudwatch_log_resource_policy.waf]
}
