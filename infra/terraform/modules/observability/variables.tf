variable "name" {
  description = "What the names of everything here begin with."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,38}[a-z0-9]$", var.name))
    error_message = "A name has 3 to 40 of the characters a-z 0-9 -, begins with a letter and does not end with -."
  }
}

variable "tags" {
  description = "Tags of everything that is made here."
  type        = map(string)
  default     = {}
}

variable "partition" {
  description = "The partition of AWS that ARNs are of."
  type        = string
  default     = "aws"

  validation {
    condition     = contains(["aws", "aws-cn", "aws-us-gov"], var.partition)
    error_message = "The partition is aws, aws-cn or aws-us-gov."
  }
}

variable "account_id" {
  description = "The account that everything is in."
  type        = string

  validation {
    condition     = can(regex("^[0-9]{12}$", var.account_id))
    error_message = "The id of an account has 12 digits."
  }
}

variable "region" {
  description = "The region that the service runs in."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2,4}(-[a-z]+)+-[0-9]{1,2}$", var.region))
    error_message = "A region is written like eu-central-1."
  }
}

variable "namespace" {
  description = "The namespace of the service's own metrics: KISEKI_METRICS_NAMESPACE of all processes and of the function. No other service of the account may have it."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9._#-]{1,255}$", var.namespace))
    error_message = "A namespace has 1 to 255 of the characters A-Z a-z 0-9 . _ # -"
  }
}

variable "subscriptions" {
  description = "Who is told of alarms, by a name of your own: the protocol of SNS (email, https, sqs, lambda) and the address. Somebody has to confirm an address of e-mail."
  type = map(object({
    protocol = string
    endpoint = string
  }))
  default = {}

  validation {
    condition     = alltrue([for one in values(var.subscriptions) : contains(["email", "email-json", "https", "sqs", "lambda"], one.protocol)])
    error_message = "The protocol is email, email-json, https, sqs or lambda."
  }
}

variable "alarms_enabled" {
  description = "Whether alarms tell anybody; false where nobody is on call."
  type        = bool
  default     = true
}

variable "load_balancer" {
  description = "The load balancer, as metrics name it (app/NAME/ID)."
  type        = string
}

variable "target_groups" {
  description = "The two target groups of each API (command-api, query-api), as metrics name them (targetgroup/NAME/ID). Either may be the live one."
  type = map(object({
    blue  = string
    green = string
  }))

  validation {
    condition     = length(setsubtract(keys(var.target_groups), ["command-api", "query-api"])) == 0
    error_message = "The APIs are command-api and query-api."
  }
}

variable "web_acl" {
  description = "The web ACL in front of the load balancer, as metrics name it; null for none."
  type        = string
  default     = null
}

variable "cluster_name" {
  description = "The ECS cluster. Its Container Insights are on: they count running tasks."
  type        = string
}

variable "services" {
  description = "The ECS service of each process (command-api, query-api, updater), and how many of its tasks have to run."
  type = map(object({
    name    = string
    minimum = number
  }))

  validation {
    condition     = length(setsubtract(keys(var.services), ["command-api", "query-api", "updater"])) == 0
    error_message = "The processes that are services are command-api, query-api and updater."
  }

  validation {
    condition     = alltrue([for one in values(var.services) : one.minimum >= 1])
    error_message = "At least one task of each service has to run, else leave the service out."
  }
}

variable "updater_function" {
  description = "The Lambda updater and the id of its event source mapping; null without one."
  type = object({
    name         = string
    mapping_uuid = string
  })
  default = null
}

variable "table_names" {
  description = "The full name of each DynamoDB table, by its name in the code."
  type        = map(string)

  validation {
    condition     = contains(keys(var.table_names), "journal")
    error_message = "The journal has to be among the tables."
  }
}

variable "index_names" {
  description = "The names of the indexes of each table that has some."
  type        = map(list(string))
  default     = {}

  validation {
    condition     = length(setsubtract(keys(var.index_names), keys(var.table_names))) == 0
    error_message = "An index belongs to one of the tables."
  }
}

variable "replicated_tables" {
  description = "The tables that have replicas in replica_regions, by their names in the code."
  type        = set(string)
  default     = ["journal", "claims", "snapshots", "keys", "revocations", "erasures"]
}

variable "replica_regions" {
  description = "The regions that DynamoDB replicates the tables to."
  type        = set(string)
  default     = []

  validation {
    condition     = !contains(var.replica_regions, var.region)
    error_message = "A replica is in another region than the service."
  }
}

variable "database" {
  description = "The RDS instance: its identifier, how many connections it takes (null: no alarm on them), and its storage in GB. `replicas` are its read replicas by region. null without one."
  type = object({
    instance_id     = string
    max_connections = optional(number)
    storage_gb      = number
    replicas        = optional(map(string), {})
  })
  default = null

  validation {
    condition     = var.database == null || try(var.database.storage_gb >= 20, false)
    error_message = "RDS has at least 20 GB of storage."
  }
}

variable "rate_store" {
  description = "The ElastiCache replication group of the rate limits, and its number of nodes (NAME-001 …). null without one."
  type = object({
    replication_group_id = string
    nodes                = number
  })
  default = null

  validation {
    condition     = var.rate_store == null || try(var.rate_store.nodes >= 1 && var.rate_store.nodes <= 6, false)
    error_message = "A replication group has 1 to 6 nodes."
  }
}

variable "certificate_arns" {
  description = "Certificates of ACM in the region, by a name of your own."
  type        = map(string)
  default     = {}
}

variable "backup_vault" {
  description = "The vault of AWS Backup; null for none."
  type        = string
  default     = null
}

variable "ages" {
  description = <<-EOT
    What `kiseki dr status --embedded-metrics` tells, and every how many seconds something runs it. null: nothing does, and
    there are no alarms on ages. `protection` is for stores on PostgreSQL or SQLite: DynamoDB protects itself, and has none.
  EOT
  type = object({
    every_seconds = optional(number, 3600)
    protection    = optional(bool, false)
  })
  default = {}

  validation {
    condition     = var.ages == null || try(var.ages.every_seconds >= 60 && var.ages.every_seconds <= 86400 && var.ages.every_seconds % 60 == 0, false)
    error_message = "every_seconds is 60 to 86400 whole minutes."
  }
}

variable "thresholds" {
  description = "From which values on alarms ring. Errors are percents of the requests of a minute, taken for at least requests_floor. Ages of backups (26 hours), protection and drills (180 days) are those of `kiseki dr status`."
  type = object({
    error_percent            = optional(number, 1)
    p99_seconds              = optional(map(number), { "command-api" = 1, "query-api" = 1 })
    balancer_errors          = optional(number, 10)
    lag_seconds              = optional(number, 300)
    iterator_age_seconds     = optional(number, 300)
    anchor_age_seconds       = optional(number, 600)
    throttles                = optional(number, 10)
    system_errors            = optional(number, 10)
    replication_seconds      = optional(number, 60)
    cpu_percent              = optional(number, 80)
    memory_percent           = optional(number, 90)
    connections_percent      = optional(number, 80)
    free_storage_percent     = optional(number, 15)
    free_memory_megabytes    = optional(number, 256)
    certificate_days         = optional(number, 30)
    backup_age_seconds       = optional(number, 93600)
    protection_age_seconds   = optional(number, 300)
    drill_age_seconds        = optional(number, 15552000)
    embedded_metrics_seconds = optional(number, 60)
    requests_floor           = optional(number, 20)
  })
  default = {}

  validation {
    condition     = length(setsubtract(keys(var.thresholds.p99_seconds), ["command-api", "query-api"])) == 0
    error_message = "The APIs are command-api and query-api."
  }

  validation {
    condition = alltrue([
      for percent in [var.thresholds.error_percent, var.thresholds.cpu_percent, var.thresholds.memory_percent, var.thresholds.connections_percent, var.thresholds.free_storage_percent] :
      percent > 0 && percent < 100
    ])
    error_message = "Percents lie between 0 and 100."
  }

  validation {
    condition     = contains([60, 120, 180, 240, 300], var.thresholds.embedded_metrics_seconds)
    error_message = "embedded_metrics_seconds is KISEKI_EMBEDDED_METRICS of the processes: 60, 120, 180, 240 or 300."
  }
}

variable "budget" {
  description = <<-EOT
    What a month may cost. Everything of the account counts unless `tag` names a cost allocation tag that is active in billing
    (KEY$VALUE). `anomalies` adds AWS's detection of unusual costs, from so many units of the currency on; an account
    has one such monitor of services only. null for no budget.
  EOT
  type = object({
    amount    = number
    currency  = optional(string, "USD")
    emails    = optional(list(string), [])
    tag       = optional(string)
    anomalies = optional(number)
  })
  default = null

  validation {
    condition     = var.budget == null || try(var.budget.amount > 0, false)
    error_message = "A budget is more than nothing."
  }

  validation {
    condition     = try(length(var.budget.emails) <= 10, true)
    error_message = "AWS tells ten addresses at most; take a distribution list."
  }

  validation {
    condition     = try(var.budget.tag == null || can(regex("^[^$]+\\$[^$]+$", var.budget.tag)), true)
    error_message = "The tag of a budget is written KEY$VALUE."
  }
}
