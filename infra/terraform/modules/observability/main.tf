# What tells people how a service is: alarms and who hears them, a dashboard, and a budget. Used by the system.
#
# alarms.tf says what rings and why, metrics.tf has the names of the service's own metrics.

locals {
  # An alarm, its topic and the key of the topic are in the region of the metric.
  regions = toset(concat([var.region], flatten([for database in var.database[*] : keys(database.replicas)])))

  # Whoever publishes says for which account, but for EventBridge (tasks and deployments that failed) and AWS Backup: a
  # condition on the account would silence these two.
  publishers = {
    Alarms    = { service = "cloudwatch.amazonaws.com", condition = { StringEquals = { "aws:SourceAccount" = var.account_id } } }
    Budgets   = { service = "budgets.amazonaws.com", condition = { StringEquals = { "aws:SourceAccount" = var.account_id } } }
    Anomalies = { service = "costalerts.amazonaws.com", condition = { StringEquals = { "aws:SourceAccount" = var.account_id } } }
    Events    = { service = "events.amazonaws.com", condition = {} }
    Backups   = { service = "backup.amazonaws.com", condition = {} }
  }
}

# A key of its own: services of AWS that publish need the key of the topic, and have no business with that of the data.
resource "aws_kms_key" "alarms" {
  for_each = local.regions

  region                  = each.key
  description             = "Messages of the alarms of ${var.name}"
  enable_key_rotation     = true
  deletion_window_in_days = 30
  tags                    = var.tags

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [{
        Sid       = "Account"
        Effect    = "Allow"
        Principal = { AWS = "arn:${var.partition}:iam::${var.account_id}:root" }
        Action    = "kms:*"
        Resource  = "*"
      }],
      [for sid, one in local.publishers : merge(
        {
          Sid       = sid
          Effect    = "Allow"
          Principal = { Service = one.service }
          Action    = ["kms:Decrypt", "kms:GenerateDataKey*"]
          Resource  = "*"
        },
        length(one.condition) == 0 ? null : { Condition = one.condition },
      )],
    )
  })

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_kms_alias" "alarms" {
  for_each = local.regions

  region        = each.key
  name          = "alias/${var.name}-alarms"
  target_key_id = aws_kms_key.alarms[each.key].key_id
}

resource "aws_sns_topic" "alarms" {
  for_each = local.regions

  region            = each.key
  name              = "${var.name}-alarms"
  display_name      = var.name
  kms_master_key_id = aws_kms_key.alarms[each.key].arn
  tags              = var.tags
}

resource "aws_sns_topic_policy" "alarms" {
  for_each = local.regions

  region = each.key
  arn    = aws_sns_topic.alarms[each.key].arn
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [for sid, one in local.publishers : merge(
        {
          Sid       = sid
          Effect    = "Allow"
          Principal = { Service = one.service }
          Action    = "sns:Publish"
          Resource  = aws_sns_topic.alarms[each.key].arn
        },
        length(one.condition) == 0 ? null : { Condition = one.condition },
      )],
      [{
        Sid       = "OnlyByTls"
        Effect    = "Deny"
        Principal = "*"
        Action    = "sns:Publish"
        Resource  = aws_sns_topic.alarms[each.key].arn
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      }],
    )
  })
}

resource "aws_sns_topic_subscription" "alarms" {
  for_each = {
    for pair in setproduct(local.regions, keys(var.subscriptions)) :
    "${pair[0]}/${pair[1]}" => merge(var.subscriptions[pair[1]], { region = pair[0] })
  }

  region    = each.value.region
  topic_arn = aws_sns_topic.alarms[each.value.region].arn
  protocol  = each.value.protocol
  endpoint  = each.value.endpoint
}

resource "aws_cloudwatch_dashboard" "this" {
  dashboard_name = var.name
  dashboard_body = jsonencode({ start = "-PT12H", widgets = local.widgets })
}

resource "aws_budgets_budget" "this" {
  count = var.budget == null ? 0 : 1

  name         = var.name
  budget_type  = "COST"
  time_unit    = "MONTHLY"
  limit_amount = format("%.2f", var.budget.amount)
  limit_unit   = var.budget.currency
  tags         = var.tags

  dynamic "cost_filter" {
    for_each = var.budget.tag[*]

    content {
      name   = "TagKeyValue"
      values = ["user:${cost_filter.value}"]
    }
  }

  dynamic "notification" {
    for_each = {
      half     = { type = "ACTUAL", percent = 50 }
      nearly   = { type = "ACTUAL", percent = 80 }
      spent    = { type = "ACTUAL", percent = 100 }
      forecast = { type = "FORECASTED", percent = 100 }
    }

    content {
      notification_type          = notification.value.type
      threshold                  = notification.value.percent
      threshold_type             = "PERCENTAGE"
      comparison_operator        = "GREATER_THAN"
      subscriber_sns_topic_arns  = [aws_sns_topic.alarms[var.region].arn]
      subscriber_email_addresses = var.budget.emails
    }
  }

  depends_on = [aws_sns_topic_policy.alarms]
}

resource "aws_ce_anomaly_monitor" "services" {
  count = try(var.budget.anomalies, null) == null ? 0 : 1

  name              = var.name
  monitor_type      = "DIMENSIONAL"
  monitor_dimension = "SERVICE"
  tags              = var.tags
}

resource "aws_ce_anomaly_subscription" "services" {
  count = length(aws_ce_anomaly_monitor.services)

  name             = var.name
  frequency        = "IMMEDIATE"
  monitor_arn_list = [aws_ce_anomaly_monitor.services[0].arn]
  tags             = var.tags

  subscriber {
    type    = "SNS"
    address = aws_sns_topic.alarms[var.region].arn
  }

  threshold_expression {
    dimension {
      key           = "ANOMALY_TOTAL_IMPACT_ABSOLUTE"
      match_options = ["GREATER_THAN_OR_EQUAL"]
      values        = [tostring(var.budget.anomalies)]
    }
  }

  depends_on = [aws_sns_topic_policy.alarms]
}
