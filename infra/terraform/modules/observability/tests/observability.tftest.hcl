mock_provider "aws" {}

variables {
  name          = "kiseki-test"
  account_id    = "123456789012"
  region        = "eu-central-1"
  namespace     = "kiseki-test"
  load_balancer = "app/kiseki-test/0123456789abcdef"
  target_groups = {
    command-api = { blue = "targetgroup/command-blue/01", green = "targetgroup/command-green/02" }
    query-api   = { blue = "targetgroup/query-blue/03", green = "targetgroup/query-green/04" }
  }
  cluster_name = "kiseki-test"
  services = {
    command-api = { name = "kiseki-test-command-api", minimum = 3 }
    query-api   = { name = "kiseki-test-query-api", minimum = 3 }
    updater     = { name = "kiseki-test-updater", minimum = 1 }
  }
  table_names = {
    journal     = "kiseki-test-journal"
    claims      = "kiseki-test-claims"
    snapshots   = "kiseki-test-snapshots"
    keys        = "kiseki-test-keys"
    revocations = "kiseki-test-revocations"
    operations  = "kiseki-test-operations"
    erasures    = "kiseki-test-erasures"
  }
  index_names = { journal = ["by-slice"] }
}

run "the_least_of_it" {
  command = plan

  assert {
    condition     = length(aws_budgets_budget.this) + length(aws_ce_anomaly_monitor.services) == 0
    error_message = "There is a budget that nobody asked for."
  }

  assert {
    condition     = length([for alarm in keys(aws_cloudwatch_metric_alarm.this) : alarm if can(regex("^(function|mapping|iterator|database|rate-store|vault|replication)-", alarm))]) == 0
    error_message = "There are alarms on what is not there; missing values would set some of them off."
  }

  assert {
    condition     = length(output.function_alarm_names) == 0
    error_message = "There is no function to be brought back."
  }

  assert {
    condition     = !contains(keys(aws_cloudwatch_metric_alarm.this), "protection-age")
    error_message = "DynamoDB protects itself: nothing tells an age, and the alarm would ring for ever."
  }
}

run "all_of_it" {
  command = plan

  variables {
    subscriptions    = { team = { protocol = "email", endpoint = "team@example.com" } }
    web_acl          = "kiseki-test"
    updater_function = { name = "kiseki-test-updater", mapping_uuid = "00000000-0000-0000-0000-000000000000" }
    replica_regions  = ["eu-west-1"]
    database         = { instance_id = "kiseki-test", max_connections = 1000, storage_gb = 100, replicas = { "eu-west-1" = "kiseki-test-replica" } }
    rate_store       = { replication_group_id = "kiseki-test", nodes = 2 }
    certificate_arns = { public = "arn:aws:acm:eu-central-1:123456789012:certificate/00000000-0000-0000-0000-000000000000" }
    backup_vault     = "kiseki-test"
    ages             = { protection = true }
    budget           = { amount = 900, emails = ["team@example.com"], tag = "project$kiseki", anomalies = 50 }
  }

  assert {
    condition = alltrue(flatten([
      for alarm in aws_cloudwatch_metric_alarm.this : [for query in alarm.metric_query : !strcontains(query.expression, ") + ") if query.expression != null]
    ]))
    error_message = "A sum of a + b is nothing where one of them never had a value."
  }

  assert {
    condition = length(setsubtract([
      "command-api-errors", "command-api-p99", "query-api-errors", "query-api-p99", "query-api-healthy", "query-api-unhealthy",
      "balancer-errors", "certificate-public", "updater-running", "updater-ready", "updater-audit", "query-api-rate-limits",
      "lag", "parked", "iterator-age", "function-errors", "function-throttles", "function-destination", "mapping-dropped",
      "mapping-given-up", "mapping-filtered", "function-redelivered", "function-parked", "function-dropped",
      "function-foreign", "function-tampered", "throttles-journal", "throttles-journal-by-slice", "throttles-erasures",
      "system-errors-journal", "replication-journal-eu-west-1", "database-cpu", "database-storage", "database-connections",
      "database-replica-eu-west-1", "rate-store-1-cpu", "rate-store-2-memory", "backup-age", "protection-age", "drill-age",
      "vault-failed", "vault-idle",
    ], keys(aws_cloudwatch_metric_alarm.this))) == 0
    error_message = "An alarm is missing."
  }

  assert {
    condition     = alltrue([for alarm in aws_cloudwatch_metric_alarm.this : contains(["breaching", "notBreaching", "ignore"], alarm.treat_missing_data)])
    error_message = "It is not decided what missing values mean."
  }

  assert {
    condition     = alltrue([for alarm in aws_cloudwatch_metric_alarm.this : length([for query in alarm.metric_query : query if query.return_data]) == 1])
    error_message = "An alarm has to look at exactly one value."
  }

  assert {
    condition     = alltrue([for alarm in aws_cloudwatch_metric_alarm.this : length(alarm.metric_query) <= 10])
    error_message = "CloudWatch takes ten metrics in an alarm."
  }

  assert {
    condition     = alltrue([for alarm in aws_cloudwatch_metric_alarm.this : length(alarm.alarm_description) <= 1024 && alarm.datapoints_to_alarm <= alarm.evaluation_periods])
    error_message = "CloudWatch would refuse an alarm."
  }

  assert {
    condition = alltrue(flatten([for alarm in aws_cloudwatch_metric_alarm.this : [
      for query in alarm.metric_query : [
        for metric in query.metric : metric.period * alarm.evaluation_periods <= (metric.period < 3600 ? 86400 : 604800)
      ]
    ]]))
    error_message = "CloudWatch looks back a day, or a week with periods of an hour or more."
  }

  assert {
    condition = alltrue(flatten([for alarm in aws_cloudwatch_metric_alarm.this : [
      for query in alarm.metric_query : can(regex("^[a-z][a-zA-Z0-9_]*$", query.id))
    ]]))
    error_message = "The id of a metric begins with a small letter and has letters, digits and _."
  }

  assert {
    condition     = aws_cloudwatch_metric_alarm.this["database-replica-eu-west-1"].region == "eu-west-1" && length(aws_sns_topic.alarms) == 2
    error_message = "The replica's metrics are in its region, and so is the topic of the alarm."
  }

  assert {
    condition     = output.deployment_alarm_names["query-api"] == ["kiseki-test-query-api-errors", "kiseki-test-query-api-p99"] && output.deployment_alarm_names["updater"] == ["kiseki-test-parked"]
    error_message = "A deployment is rolled back on the wrong alarms."
  }

  assert {
    condition     = aws_budgets_budget.this[0].limit_amount == "900.00"
    error_message = "The budget is another one."
  }

  assert {
    condition     = alltrue([for topic in aws_sns_topic_subscription.alarms : topic.endpoint == "team@example.com"]) && length(aws_sns_topic_subscription.alarms) == 2
    error_message = "Somebody is not told."
  }
}

run "a_budget_of_nothing_is_refused" {
  command = plan

  variables {
    budget = { amount = 0 }
  }

  expect_failures = [var.budget]
}

run "an_unknown_process_is_refused" {
  command = plan

  variables {
    services = { commands = { name = "kiseki-test-commands", minimum = 1 } }
  }

  expect_failures = [var.services]
}

run "lines_that_are_rarer_than_alarms_look_are_refused" {
  command = plan

  variables {
    thresholds = { embedded_metrics_seconds = 900 }
  }

  expect_failures = [var.thresholds]
}
