# What rings. An alarm has metrics by an id, and an expression over them where there are several.
#
# What missing values mean is decided for each:
#   breaching     somebody has to say it all the time (a process, a database, a drill), and silence is the worst news;
#   notBreaching  it is only counted when it happens (errors, throttles, batches), and silence is good news;
#   ignore        a state of somebody whose silence another alarm tells of: until then, what was said last holds.

locals {
  minute = 60

  balancer = { LoadBalancer = var.load_balancer }

  # Sums are SUM([…]) and not a + b: one of the two may never have had a value, as the green target group before the first
  # release, and a + nothing is nothing.

  # Either target group may be the live one, and after a release the other one has neither targets nor requests.
  api_alarms = merge([
    for api, groups in var.target_groups : {
      "${api}-errors" = {
        description = "More than ${var.thresholds.error_percent} % of the requests to ${api} fail (5xx). Look into its log; during a release it is rolled back."
        metrics = {
          blue  = { namespace = "AWS/ApplicationELB", name = "HTTPCode_Target_5XX_Count", stat = "Sum", dimensions = merge(local.balancer, { TargetGroup = groups.blue }) }
          green = { namespace = "AWS/ApplicationELB", name = "HTTPCode_Target_5XX_Count", stat = "Sum", dimensions = merge(local.balancer, { TargetGroup = groups.green }) }
          all_b = { namespace = "AWS/ApplicationELB", name = "RequestCount", stat = "Sum", dimensions = merge(local.balancer, { TargetGroup = groups.blue }) }
          all_g = { namespace = "AWS/ApplicationELB", name = "RequestCount", stat = "Sum", dimensions = merge(local.balancer, { TargetGroup = groups.green }) }
        }
        # The floor keeps one error of three requests at night from being a third of everything.
        expression = format(
          "100 * SUM([FILL(blue, 0), FILL(green, 0)]) / IF(%[1]s > %[2]d, %[1]s, %[2]d)",
          "SUM([FILL(all_b, 0), FILL(all_g, 0)])", var.thresholds.requests_floor,
        )
        above   = var.thresholds.error_percent
        period  = local.minute
        periods = 5
        points  = 3
        missing = "notBreaching"
      }
      "${api}-p99" = {
        description = "One of a hundred requests to ${api} takes longer than ${lookup(var.thresholds.p99_seconds, api, 1)} s. Look at its CPU, at the latency of the tables and at the database."
        metrics = {
          blue  = { namespace = "AWS/ApplicationELB", name = "TargetResponseTime", stat = "p99", dimensions = merge(local.balancer, { TargetGroup = groups.blue }) }
          green = { namespace = "AWS/ApplicationELB", name = "TargetResponseTime", stat = "p99", dimensions = merge(local.balancer, { TargetGroup = groups.green }) }
        }
        expression = "MAX([FILL(blue, 0), FILL(green, 0)])"
        above      = lookup(var.thresholds.p99_seconds, api, 1)
        period     = local.minute
        periods    = 5
        points     = 3
        missing    = "notBreaching"
      }
      "${api}-healthy" = {
        description = "Fewer targets of ${api} are healthy than have to run. Look at the events of its service."
        metrics = {
          blue  = { namespace = "AWS/ApplicationELB", name = "HealthyHostCount", stat = "Minimum", dimensions = merge(local.balancer, { TargetGroup = groups.blue }) }
          green = { namespace = "AWS/ApplicationELB", name = "HealthyHostCount", stat = "Minimum", dimensions = merge(local.balancer, { TargetGroup = groups.green }) }
        }
        expression = "SUM([FILL(blue, 0), FILL(green, 0)])"
        below      = contains(keys(var.services), api) ? var.services[api].minimum : 1
        period     = local.minute
        periods    = 5
        # The load balancer counts targets all the time; without any, it does not serve.
        missing = "breaching"
      }
      "${api}-unhealthy" = {
        description = "Targets of ${api} are not ready for ten minutes. Look at /ready on the management port, and into the log."
        metrics = {
          blue  = { namespace = "AWS/ApplicationELB", name = "UnHealthyHostCount", stat = "Maximum", dimensions = merge(local.balancer, { TargetGroup = groups.blue }) }
          green = { namespace = "AWS/ApplicationELB", name = "UnHealthyHostCount", stat = "Maximum", dimensions = merge(local.balancer, { TargetGroup = groups.green }) }
        }
        expression = "SUM([FILL(blue, 0), FILL(green, 0)])"
        above      = 0
        period     = local.minute
        periods    = 10
        # Too few healthy ones is another alarm.
        missing = "notBreaching"
      }
    }
  ]...)

  edge_alarms = merge(
    {
      balancer-errors = {
        description = "The load balancer answers with 5xx by itself: no target takes requests, or targets close connections."
        metrics = {
          errors = { namespace = "AWS/ApplicationELB", name = "HTTPCode_ELB_5XX_Count", stat = "Sum", dimensions = local.balancer }
        }
        above   = var.thresholds.balancer_errors
        period  = 5 * local.minute
        periods = 1
        missing = "notBreaching"
      }
    },
    {
      for certificate, arn in var.certificate_arns : "certificate-${certificate}" => {
        description = "A certificate ends within ${var.thresholds.certificate_days} days, so it was not renewed by itself: docs/operations/certificate-expiry.md"
        metrics = {
          days = { namespace = "AWS/CertificateManager", name = "DaysToExpiry", stat = "Minimum", dimensions = { CertificateArn = arn } }
        }
        below   = var.thresholds.certificate_days
        period  = 86400
        periods = 2
        # Of one that has ended there is no such metric.
        missing = "breaching"
      }
    },
  )

  process_alarms = merge(
    [for process, service in var.services : {
      "${process}-running" = {
        description = "Fewer tasks of ${process} run than have to. Look at the events of its service."
        metrics = {
          tasks = { namespace = "ECS/ContainerInsights", name = "RunningTaskCount", stat = "Minimum", dimensions = { ClusterName = var.cluster_name, ServiceName = service.name } }
        }
        below   = service.minimum
        period  = local.minute
        periods = 5
        missing = "breaching"
      }
      "${process}-memory" = {
        description = "A task of ${process} is about to run out of memory, and would be killed."
        metrics = {
          memory = { namespace = "AWS/ECS", name = "MemoryUtilization", stat = "Maximum", dimensions = { ClusterName = var.cluster_name, ServiceName = service.name } }
        }
        above   = var.thresholds.memory_percent
        period  = local.minute
        periods = 5
        missing = "ignore"
      }
      "${process}-ready" = {
        description = "No process of ${process} says that it is ready."
        metrics = {
          ready = { namespace = var.namespace, name = local.own.ready, stat = "Maximum", dimensions = { process = process } }
        }
        below   = 1
        period  = var.thresholds.embedded_metrics_seconds
        periods = 5
        missing = "breaching"
      }
      "${process}-audit" = {
        description = "A process of ${process} can't record security events: docs/security.md"
        metrics = {
          healthy = { namespace = var.namespace, name = local.own.audit_healthy, stat = "Minimum", dimensions = { process = process } }
        }
        below   = 1
        period  = var.thresholds.embedded_metrics_seconds
        periods = 3
        missing = "ignore"
      }
      "${process}-anchors" = {
        description = "The heads of the audit log of a process of ${process} were not anchored for ${var.thresholds.anchor_age_seconds} s, so its end could be cut off unnoticed: docs/security.md"
        metrics = {
          age = { namespace = var.namespace, name = local.own.audit_anchor_age_seconds, stat = "Maximum", dimensions = { process = process } }
        }
        above   = var.thresholds.anchor_age_seconds
        period  = var.thresholds.embedded_metrics_seconds
        periods = 3
        missing = "ignore"
      }
    }]...
  )

  rate_limit_alarms = {
    for process in keys(var.services) : "${process}-rate-limits" => {
      description = "A process of ${process} does not reach the shared store of rate limits: each counts for itself, so limits are as many times as high as there are tasks."
      metrics = {
        shared = { namespace = var.namespace, name = local.own.rate_limit_shared, stat = "Minimum", dimensions = { process = process } }
      }
      below   = 1
      period  = var.thresholds.embedded_metrics_seconds
      periods = 5
      missing = "ignore"
    } if var.rate_store != null && process != "updater"
  }

  projection_alarms = {
    lag = {
      description = "Read models are more than ${var.thresholds.lag_seconds} s behind the journal, or nobody can say how far. Look at the updaters, the function and the database."
      metrics = {
        seconds = { namespace = var.namespace, name = local.own.projection_lag_seconds, stat = "Maximum", dimensions = { process = "updater" } }
      }
      above   = var.thresholds.lag_seconds
      period  = var.thresholds.embedded_metrics_seconds
      periods = 5
      # While stores don't answer, the updater can't measure.
      missing = "breaching"
    }
    parked = {
      description = "Streams are parked: what happened to them after a poison event waits. docs/operations/poisoned-projection.md"
      metrics = {
        streams = { namespace = var.namespace, name = local.own.parked_streams, stat = "Maximum", dimensions = { process = "updater" } }
      }
      above   = 0
      period  = var.thresholds.embedded_metrics_seconds
      periods = 1
      missing = "ignore"
    }
  }

  # A stream has no dead-letter queue (DeadLetterErrors is of asynchronous calls); its destination on failure is counted.
  function_alarms = merge([
    for function in var.updater_function[*] : merge(
      {
        iterator-age = {
          description = "The function is more than ${var.thresholds.iterator_age_seconds} s behind the stream, which forgets after 24 hours."
          metrics = {
            age = { namespace = "AWS/Lambda", name = "IteratorAge", stat = "Maximum", dimensions = { FunctionName = function.name } }
          }
          above   = 1000 * var.thresholds.iterator_age_seconds
          period  = local.minute
          periods = 5
          # Without records there are no invocations. A mapping that is off makes read models late, which is another alarm.
          missing = "notBreaching"
        }
        function-errors = {
          description = "The function fails: it is set up wrongly, or ends before it can answer. Its log says why."
          metrics = {
            errors = { namespace = "AWS/Lambda", name = "Errors", stat = "Sum", dimensions = { FunctionName = function.name } }
          }
          above   = 0
          period  = local.minute
          periods = 5
          points  = 3
          missing = "notBreaching"
        }
        function-throttles = {
          description = "Batches wait because the function has too few environments: reserved_concurrency, or the account's limit."
          metrics = {
            throttles = { namespace = "AWS/Lambda", name = "Throttles", stat = "Sum", dimensions = { FunctionName = function.name } }
          }
          above   = 0
          period  = 5 * local.minute
          periods = 3
          missing = "notBreaching"
        }
        function-destination = {
          description = "Records that the function gave up did not reach the failure bucket. The sweeper applies them; find out why the bucket refuses."
          metrics = {
            failures = { namespace = "AWS/Lambda", name = "DestinationDeliveryFailures", stat = "Sum", dimensions = { FunctionName = function.name } }
          }
          above   = 0
          period  = 5 * local.minute
          periods = 1
          missing = "notBreaching"
        }
      },
      {
        for alarm, about in {
          mapping-dropped  = { metric = "DroppedEventCount", says = "Records were dropped without having reached the failure bucket. The sweeper applies them; find out what kept the function from doing so." }
          mapping-given-up = { metric = "OnFailureDestinationDeliveredEventCount", says = "Records were given up after a day of trying, and are in the failure bucket. The sweeper applies them; find out what kept the function from doing so." }
          mapping-filtered = { metric = "FilteredOutEventCount", says = "Somebody changed or removed items of the journal, which nothing of kiseki's does: docs/security.md" }
          } : alarm => {
          description = about.says
          metrics = {
            records = { namespace = "AWS/Lambda", name = about.metric, stat = "Sum", dimensions = { EventSourceMappingUUID = function.mapping_uuid } }
          }
          above   = 0
          period  = 5 * local.minute
          periods = 1
          missing = "notBreaching"
        }
      },
      {
        for count, about in {
          redelivered = { periods = 3, says = "Batches are given back for a quarter of an hour: what they need does not answer. The function's log says what." }
          parked      = { periods = 1, says = "The function parked streams: docs/operations/poisoned-projection.md" }
          dropped     = { periods = 1, says = "The function got records that do not even name a stream. The sweeper applies what they were about; the log has their numbers." }
          foreign     = { periods = 1, says = "The function gets records of another table: its mapping is of the wrong stream." }
          tampered    = { periods = 1, says = "Somebody changed or removed items of the journal, which nothing of kiseki's does: docs/security.md" }
          } : "function-${count}" => {
          description = about.says
          metrics = {
            records = { namespace = var.namespace, name = local.counts[count], stat = "Sum", dimensions = { function = function.name } }
          }
          above   = 0
          period  = 5 * local.minute
          periods = about.periods
          # The function writes a line for each batch.
          missing = "notBreaching"
        }
      },
    )
  ]...)

  # What the service asks of the tables that it can't do without.
  asked = ["GetItem", "BatchGetItem", "Query", "PutItem", "TransactWriteItems"]

  table_alarms = merge(
    {
      for table, full in var.table_names : "throttles-${table}" => {
        description = "DynamoDB throttles the table ${full}: its maximum is reached, or one key is asked for too often. `kiseki scale show` says what is in force."
        metrics = {
          reads  = { namespace = "AWS/DynamoDB", name = "ReadThrottleEvents", stat = "Sum", dimensions = { TableName = full } }
          writes = { namespace = "AWS/DynamoDB", name = "WriteThrottleEvents", stat = "Sum", dimensions = { TableName = full } }
        }
        expression = "SUM([FILL(reads, 0), FILL(writes, 0)])"
        above      = var.thresholds.throttles
        period     = local.minute
        periods    = 5
        points     = 3
        missing    = "notBreaching"
      }
    },
    merge([
      for table, indexes in var.index_names : {
        for index in indexes : "throttles-${table}-${index}" => {
          description = "DynamoDB throttles the index ${index}, and with it writes to the table ${var.table_names[table]}."
          metrics = {
            reads  = { namespace = "AWS/DynamoDB", name = "ReadThrottleEvents", stat = "Sum", dimensions = { TableName = var.table_names[table], GlobalSecondaryIndexName = index } }
            writes = { namespace = "AWS/DynamoDB", name = "WriteThrottleEvents", stat = "Sum", dimensions = { TableName = var.table_names[table], GlobalSecondaryIndexName = index } }
          }
          expression = "SUM([FILL(reads, 0), FILL(writes, 0)])"
          above      = var.thresholds.throttles
          period     = local.minute
          periods    = 5
          points     = 3
          missing    = "notBreaching"
        }
      }
    ]...),
    {
      for table, full in var.table_names : "system-errors-${table}" => {
        description = "DynamoDB fails by itself on the table ${full}; processes try again. Look at the AWS Health Dashboard, and at docs/operations/lost-region.md"
        metrics = {
          for operation in local.asked : lower(operation) => {
            namespace = "AWS/DynamoDB", name = "SystemErrors", stat = "Sum", dimensions = { TableName = full, Operation = operation }
          }
        }
        expression = format("SUM([%s])", join(", ", [for operation in local.asked : "FILL(${lower(operation)}, 0)"]))
        above      = var.thresholds.system_errors
        period     = local.minute
        periods    = 5
        points     = 3
        missing    = "notBreaching"
      } if contains(["journal", "claims", "keys"], table)
    },
    {
      for pair in setproduct(var.replicated_tables, var.replica_regions) : "replication-${pair[0]}-${pair[1]}" => {
        description = "The copy of the table ${var.table_names[pair[0]]} in ${pair[1]} is more than ${var.thresholds.replication_seconds} s behind: so much would be lost with this region. docs/operations/lost-region.md"
        metrics = {
          milliseconds = { namespace = "AWS/DynamoDB", name = "ReplicationLatency", stat = "Average", dimensions = { TableName = var.table_names[pair[0]], ReceivingRegion = pair[1] } }
        }
        # There is a value only when something was written. Alarms on what DynamoDB measures pass over missing values,
        # whatever is said here, and would ring on.
        expression = "FILL(milliseconds, 0)"
        above      = 1000 * var.thresholds.replication_seconds
        period     = local.minute
        periods    = 5
        missing    = "notBreaching"
      } if contains(keys(var.table_names), pair[0])
    },
  )

  gigabyte = 1024 * 1024 * 1024

  database_alarms = merge([
    for database in var.database[*] : merge(
      {
        database-cpu = {
          description = "The database has no CPU left, or says nothing. Look at Performance Insights."
          metrics = {
            cpu = { namespace = "AWS/RDS", name = "CPUUtilization", stat = "Average", dimensions = { DBInstanceIdentifier = database.instance_id } }
          }
          above   = var.thresholds.cpu_percent
          period  = 5 * local.minute
          periods = 3
          missing = "breaching"
        }
        database-storage = {
          description = "The storage of the database is nearly full: docs/operations/full-disk.md"
          metrics = {
            bytes = { namespace = "AWS/RDS", name = "FreeStorageSpace", stat = "Minimum", dimensions = { DBInstanceIdentifier = database.instance_id } }
          }
          below   = floor(database.storage_gb * local.gigabyte * var.thresholds.free_storage_percent / 100)
          period  = 5 * local.minute
          periods = 1
          missing = "ignore"
        }
        database-memory = {
          description = "The database has less than ${var.thresholds.free_memory_megabytes} MB of memory left."
          metrics = {
            bytes = { namespace = "AWS/RDS", name = "FreeableMemory", stat = "Average", dimensions = { DBInstanceIdentifier = database.instance_id } }
          }
          below   = var.thresholds.free_memory_megabytes * 1024 * 1024
          period  = 5 * local.minute
          periods = 3
          missing = "ignore"
        }
        database-transactions = {
          description = "PostgreSQL is half-way to having no transaction ids left: autovacuum does not keep up, or an old transaction or slot holds it."
          metrics = {
            used = { namespace = "AWS/RDS", name = "MaximumUsedTransactionIDs", stat = "Maximum", dimensions = { DBInstanceIdentifier = database.instance_id } }
          }
          above   = 1000000000
          period  = 5 * local.minute
          periods = 3
          missing = "ignore"
        }
      },
      {
        for most in database.max_connections[*] : "database-connections" => {
          description = "More than ${var.thresholds.connections_percent} % of the database's connections are taken: `kiseki scale plan`."
          metrics = {
            connections = { namespace = "AWS/RDS", name = "DatabaseConnections", stat = "Maximum", dimensions = { DBInstanceIdentifier = database.instance_id } }
          }
          above   = floor(most * var.thresholds.connections_percent / 100)
          period  = local.minute
          periods = 5
          missing = "ignore"
        }
      },
      {
        for region, replica in database.replicas : "database-replica-${region}" => {
          region      = region
          description = "The copy of the database in ${region} is more than ${var.thresholds.replication_seconds} s behind, or does not follow: docs/operations/lost-region.md"
          metrics = {
            seconds = { namespace = "AWS/RDS", name = "ReplicaLag", stat = "Maximum", dimensions = { DBInstanceIdentifier = replica } }
          }
          above   = var.thresholds.replication_seconds
          period  = local.minute
          periods = 5
          missing = "breaching"
        }
      },
    )
  ]...)

  cache_nodes = flatten([
    for store in var.rate_store[*] : [for number in range(store.nodes) : format("%s-%03d", store.replication_group_id, number + 1)]
  ])

  rate_store_alarms = merge([
    for place, node in local.cache_nodes : {
      "rate-store-${place + 1}-cpu" = {
        description = "The store of rate limits has no CPU left, or says nothing; without it every task counts for itself."
        metrics = {
          cpu = { namespace = "AWS/ElastiCache", name = "EngineCPUUtilization", stat = "Average", dimensions = { CacheClusterId = node } }
        }
        above   = var.thresholds.cpu_percent
        period  = 5 * local.minute
        periods = 3
        missing = "breaching"
      }
      "rate-store-${place + 1}-memory" = {
        description = "The store of rate limits is nearly full: it would forget counts, and with them limits."
        metrics = {
          memory = { namespace = "AWS/ElastiCache", name = "DatabaseMemoryUsagePercentage", stat = "Maximum", dimensions = { CacheClusterId = node } }
        }
        above   = var.thresholds.memory_percent
        period  = 5 * local.minute
        periods = 1
        missing = "ignore"
      }
      "rate-store-${place + 1}-evictions" = {
        description = "The store of rate limits forgets counts because it is full."
        metrics = {
          evictions = { namespace = "AWS/ElastiCache", name = "Evictions", stat = "Sum", dimensions = { CacheClusterId = node } }
        }
        above   = 0
        period  = 5 * local.minute
        periods = 1
        missing = "ignore"
      }
    }
  ]...)

  # What was never done has no age, and what ran last may have stopped running: both are missing values.
  age_alarms = merge([
    for ages in var.ages[*] : {
      for alarm, about in {
        backup-age     = { metric = local.aged.backup_age_seconds, above = var.thresholds.backup_age_seconds, says = "The last verified backup is too old, there is none, or nobody looked: docs/operations/backup.md" }
        protection-age = { metric = local.aged.protection_age_seconds, above = var.thresholds.protection_age_seconds, says = "Continuous protection has stopped: docs/operations/backup.md" }
        drill-age      = { metric = local.aged.drill_age_seconds, above = var.thresholds.drill_age_seconds, says = "The last drill is too old, failed, or there was none: docs/operations/drill.md" }
        } : alarm => {
        description = about.says
        metrics = {
          age = { namespace = var.namespace, name = about.metric, stat = "Maximum", dimensions = { process = "dr-status" } }
        }
        above   = about.above
        period  = ages.every_seconds
        periods = 3
        missing = "breaching"
      } if alarm != "protection-age" || ages.protection
    }
  ]...)

  vault_alarms = merge([
    for vault in var.backup_vault[*] : {
      vault-failed = {
        description = "A job of AWS Backup failed, was stopped or never began: docs/operations/restore-dynamodb.md"
        metrics = {
          for end in ["Failed", "Aborted", "Expired"] : lower(end) => {
            namespace = "AWS/Backup", name = "NumberOfBackupJobs${end}", stat = "Sum", dimensions = { BackupVaultName = vault }
          }
        }
        expression = "SUM([FILL(failed, 0), FILL(aborted, 0), FILL(expired, 0)])"
        above      = 0
        period     = 3600
        periods    = 1
        missing    = "notBreaching"
      }
      vault-idle = {
        description = "AWS Backup finished no job for two days: docs/operations/restore-dynamodb.md"
        metrics = {
          jobs = { namespace = "AWS/Backup", name = "NumberOfBackupJobsCompleted", stat = "Sum", dimensions = { BackupVaultName = vault } }
        }
        below   = 1
        period  = 86400
        periods = 2
        missing = "breaching"
      }
    }
  ]...)

  alarms = merge(
    local.api_alarms, local.edge_alarms, local.process_alarms, local.rate_limit_alarms, local.projection_alarms,
    local.function_alarms, local.table_alarms, local.database_alarms, local.rate_store_alarms, local.age_alarms,
    local.vault_alarms,
  )
}

resource "aws_cloudwatch_metric_alarm" "this" {
  for_each = local.alarms

  region              = try(each.value.region, var.region)
  alarm_name          = "${var.name}-${each.key}"
  alarm_description   = each.value.description
  comparison_operator = can(each.value.above) ? "GreaterThanThreshold" : "LessThanThreshold"
  threshold           = try(each.value.above, each.value.below)
  evaluation_periods  = each.value.periods
  datapoints_to_alarm = try(each.value.points, each.value.periods)
  treat_missing_data  = each.value.missing
  actions_enabled     = var.alarms_enabled
  alarm_actions       = [aws_sns_topic.alarms[try(each.value.region, var.region)].arn]
  ok_actions          = [aws_sns_topic.alarms[try(each.value.region, var.region)].arn]
  tags                = var.tags

  dynamic "metric_query" {
    for_each = each.value.metrics

    content {
      id          = metric_query.key
      return_data = !can(each.value.expression)

      metric {
        namespace   = metric_query.value.namespace
        metric_name = metric_query.value.name
        stat        = metric_query.value.stat
        dimensions  = metric_query.value.dimensions
        period      = each.value.period
      }
    }
  }

  dynamic "metric_query" {
    for_each = try([each.value.expression], [])

    content {
      id          = "value"
      expression  = metric_query.value
      label       = each.key
      return_data = true
    }
  }
}
