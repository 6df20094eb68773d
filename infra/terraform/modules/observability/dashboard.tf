# What the dashboard shows, from what users feel down to what it is made of. Widgets without a place are put one after the
# other, three in a row.

locals {
  sides = merge([for api, groups in var.target_groups : { for side, group in groups : "${api}/${side}" => { api = api, group = group } }]...)

  # The tables that a command or a query waits for.
  waited_for = [for table in ["journal", "claims", "snapshots", "keys", "revocations"] : table if contains(keys(var.table_names), table)]

  panels = concat(
    [
      {
        title   = "Requests a minute"
        stat    = "Sum"
        metrics = [for side, one in local.sides : ["AWS/ApplicationELB", "RequestCount", "LoadBalancer", var.load_balancer, "TargetGroup", one.group, { label = side }]]
      },
      {
        title = "Answers of 5xx a minute"
        stat  = "Sum"
        metrics = concat(
          [for side, one in local.sides : ["AWS/ApplicationELB", "HTTPCode_Target_5XX_Count", "LoadBalancer", var.load_balancer, "TargetGroup", one.group, { label = side }]],
          [["AWS/ApplicationELB", "HTTPCode_ELB_5XX_Count", "LoadBalancer", var.load_balancer, { label = "load balancer" }]],
          [for api in keys(var.target_groups) : [var.namespace, local.own.http_5xx, "process", api, { label = "${api}, as it says" }]],
        )
      },
      {
        title = "Time of 99 of 100 requests (s)"
        stat  = "p99"
        metrics = concat(
          [for side, one in local.sides : ["AWS/ApplicationELB", "TargetResponseTime", "LoadBalancer", var.load_balancer, "TargetGroup", one.group, { label = side }]],
          [for api in keys(var.target_groups) : [var.namespace, local.own.http_p99_seconds, "process", api, { label = "${api}, its slowest process", stat = "Maximum" }]],
        )
      },
      {
        title = "Processes that are ready, and requests as they count them"
        stat  = "Sum"
        metrics = concat(
          [for process in keys(var.services) : [var.namespace, local.own.ready, "process", process, { label = "${process} ready" }]],
          [for api in keys(var.target_groups) : [var.namespace, local.own.http_requests, "process", api, { label = "${api} requests", yAxis = "right" }]],
        )
      },
      {
        title = "Read models behind the journal (s)"
        stat  = "Maximum"
        metrics = [
          [var.namespace, local.own.projection_lag_seconds, "process", "updater", { label = "seconds" }],
          [var.namespace, local.own.projection_lag_commits, "process", "updater", { label = "commits", yAxis = "right" }],
        ]
      },
      {
        title = "Parked streams"
        stat  = "Maximum"
        metrics = concat(
          [[var.namespace, local.own.parked_streams, "process", "updater", { label = "now" }]],
          [for function in var.updater_function[*] : [var.namespace, local.counts.parked, "function", function.name, { label = "parked by the function", stat = "Sum" }]],
        )
      },
      {
        title = "Time of calls to the journal (ms, 99 of 100)"
        stat  = "p99"
        metrics = [for operation in ["PutItem", "TransactWriteItems", "GetItem", "Query", "BatchGetItem"] :
        ["AWS/DynamoDB", "SuccessfulRequestLatency", "TableName", var.table_names["journal"], "Operation", operation, { label = operation }]]
      },
      {
        title = "Throttled calls of tables a minute"
        stat  = "Sum"
        metrics = flatten([for table in local.waited_for : [for metric in ["ReadThrottleEvents", "WriteThrottleEvents"] :
          { row = ["AWS/DynamoDB", metric, "TableName", var.table_names[table], { label = "${table} ${metric}" }] }
        ]])[*].row
      },
      {
        title = "Units that tables use a minute"
        stat  = "Sum"
        metrics = flatten([for table in local.waited_for : [for metric in ["ConsumedReadCapacityUnits", "ConsumedWriteCapacityUnits"] :
          { row = ["AWS/DynamoDB", metric, "TableName", var.table_names[table], { label = "${table} ${metric}" }] }
        ]])[*].row
      },
    ],
    [
      for function in var.updater_function[*] : {
        title = "Function: age of what it gets (ms), batches given back"
        stat  = "Maximum"
        metrics = [
          ["AWS/Lambda", "IteratorAge", "FunctionName", function.name, { label = "age" }],
          [var.namespace, local.counts.redelivered, "function", function.name, { label = "records given back", stat = "Sum", yAxis = "right" }],
        ]
      }
    ],
    [
      for function in var.updater_function[*] : {
        title = "Function: records a minute"
        stat  = "Sum"
        metrics = concat(
          [for count in ["records", "applied", "skipped", "reread", "dropped", "foreign", "tampered"] :
          [var.namespace, local.counts[count], "function", function.name, { label = count }]],
          [for metric in ["FilteredOutEventCount", "DroppedEventCount", "OnFailureDestinationDeliveredEventCount"] :
          ["AWS/Lambda", metric, "EventSourceMappingUUID", function.mapping_uuid, { label = metric }]],
        )
      }
    ],
    [
      for function in var.updater_function[*] : {
        title = "Function: environments, errors, throttles"
        stat  = "Sum"
        metrics = [
          ["AWS/Lambda", "ConcurrentExecutions", "FunctionName", function.name, { label = "environments", stat = "Maximum" }],
          ["AWS/Lambda", "Errors", "FunctionName", function.name, { label = "errors" }],
          ["AWS/Lambda", "Throttles", "FunctionName", function.name, { label = "throttles" }],
          ["AWS/Lambda", "Duration", "FunctionName", function.name, { label = "ms, 99 of 100", stat = "p99", yAxis = "right" }],
        ]
      }
    ],
    [
      for database in var.database[*] : {
        title = "Database: CPU (%), connections"
        stat  = "Average"
        metrics = [
          ["AWS/RDS", "CPUUtilization", "DBInstanceIdentifier", database.instance_id, { label = "CPU" }],
          ["AWS/RDS", "DatabaseConnections", "DBInstanceIdentifier", database.instance_id, { label = "connections", stat = "Maximum", yAxis = "right" }],
        ]
      }
    ],
    [
      for database in var.database[*] : {
        title = "Database: free storage and memory (bytes)"
        stat  = "Minimum"
        metrics = [
          ["AWS/RDS", "FreeStorageSpace", "DBInstanceIdentifier", database.instance_id, { label = "storage" }],
          ["AWS/RDS", "FreeableMemory", "DBInstanceIdentifier", database.instance_id, { label = "memory", yAxis = "right" }],
        ]
      }
    ],
    [
      for database in var.database[*] : {
        title = "Database: time of reads and writes (s)"
        stat  = "Average"
        metrics = [
          ["AWS/RDS", "ReadLatency", "DBInstanceIdentifier", database.instance_id, { label = "reads" }],
          ["AWS/RDS", "WriteLatency", "DBInstanceIdentifier", database.instance_id, { label = "writes" }],
        ]
      }
    ],
    [
      for group in var.rate_store[*] : {
        title = "Store of rate limits: CPU, memory (%)"
        stat  = "Average"
        metrics = concat(
          [for node in local.cache_nodes : ["AWS/ElastiCache", "EngineCPUUtilization", "CacheClusterId", node, { label = "${node} CPU" }]],
          [for node in local.cache_nodes : ["AWS/ElastiCache", "DatabaseMemoryUsagePercentage", "CacheClusterId", node, { label = "${node} memory" }]],
          [for api in keys(var.target_groups) : [var.namespace, local.own.rate_limit_shared, "process", api, { label = "${api} reaches it", stat = "Minimum", yAxis = "right" }]],
        )
      }
    ],
    [
      {
        title = "Security events are recorded; age of anchors (s); end of a process's own certificate (s)"
        stat  = "Minimum"
        metrics = concat(
          [for process in keys(var.services) : [var.namespace, local.own.audit_healthy, "process", process, { label = process }]],
          [for process in keys(var.services) : [var.namespace, local.own.audit_anchor_age_seconds, "process", process, { label = "${process} anchors", stat = "Maximum", yAxis = "right" }]],
          [for process in keys(var.services) : [var.namespace, local.own.tls_expires_seconds, "process", process, { label = "${process} certificate", yAxis = "right" }]],
        )
      },
      {
        title = "Tasks: CPU and memory (%)"
        stat  = "Maximum"
        metrics = flatten([for process, service in var.services : [for metric in ["CPUUtilization", "MemoryUtilization"] :
          { row = ["AWS/ECS", metric, "ClusterName", var.cluster_name, "ServiceName", service.name, { label = "${process} ${metric}" }] }
        ]])[*].row
      },
      {
        title = "Ages of backups and of the last drill (s)"
        stat  = "Maximum"
        metrics = [
          for metric in local.metrics.ages : [var.namespace, metric, "process", "dr-status", { label = metric, period = try(var.ages.every_seconds, 3600) }]
        ]
      },
    ],
    [
      for regions in [tolist(var.replica_regions)] : {
        title = "Copies of tables behind (ms)"
        stat  = "Average"
        metrics = flatten([for table in var.replicated_tables : [for region in regions :
          { row = ["AWS/DynamoDB", "ReplicationLatency", "TableName", lookup(var.table_names, table, table), "ReceivingRegion", region, { label = "${table} ${region}" }] }
        ]])[*].row
      } if length(regions) > 0
    ],
    [
      for acl in var.web_acl[*] : {
        title = "Requests that the firewall blocked a minute"
        stat  = "Sum"
        metrics = [
          ["AWS/WAFV2", "BlockedRequests", "WebACL", acl, "Region", var.region, "Rule", "ALL", { label = "blocked" }],
          ["AWS/WAFV2", "AllowedRequests", "WebACL", acl, "Region", var.region, "Rule", "ALL", { label = "let through", yAxis = "right" }],
        ]
      }
    ],
  )

  # A widget has a hundred alarms at most.
  told_here = [for alarm, made in aws_cloudwatch_metric_alarm.this : made.arn if !startswith(alarm, "database-replica-")]

  widgets = concat(
    [for part in chunklist(local.told_here, 100) : {
      type       = "alarm"
      width      = 24
      height     = 6
      properties = { title = "Alarms", alarms = part }
    }],
    [for panel in local.panels : {
      type   = "metric"
      width  = 8
      height = 6
      properties = {
        title   = panel.title
        region  = var.region
        view    = "timeSeries"
        stat    = panel.stat
        period  = local.minute
        metrics = panel.metrics
      }
    }],
  )
}
