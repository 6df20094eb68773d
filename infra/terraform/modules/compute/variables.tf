variable "name" {
  description = "What the names of everything here begin with; also the name of the cluster and of the repository."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,20}[a-z0-9]$", var.name))
    error_message = "A name has 3 to 22 of the characters a-z 0-9 -, begins with a letter and does not end with -."
  }
}

variable "tags" {
  description = "Tags of everything that is made here."
  type        = map(string)
  default     = {}
}

variable "region" {
  description = "The region that the service runs in."
  type        = string
}

variable "image" {
  description = "The image of the first tasks, by its digest: REPOSITORY@sha256:…. Null until the first image was pushed: then there is a repository and a cluster, and nothing that runs. Later images are the command line's, so a change of this one reaches what runs only with a release."
  type        = string
  default     = null

  validation {
    condition     = var.image == null || can(regex("^[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)+@sha256:[0-9a-f]{64}$", coalesce(var.image, "none")))
    error_message = "An image is named by its digest, repository@sha256:…; a tag could become another image under running services."
  }
}

variable "application" {
  description = "The application that the image serves, as MODULE:ATTRIBUTE; the shipped user accounts unless set."
  type        = string
  default     = null

  validation {
    condition     = var.application == null || can(regex("^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$", coalesce(var.application, "none")))
    error_message = "An application is written MODULE:ATTRIBUTE, such as shop.service:application."
  }
}

variable "start_services" {
  description = "Whether there are services. False for the first apply with an image, until `kiseki migrate` has run as a task: a service without its tables ends at once."
  type        = bool
  default     = true
}

variable "environment" {
  description = "The environment of each process: command-api, query-api, updater, migrate, backup. Secrets are references (aws-sm://…), which the processes read themselves. What depends on the task is added here: KISEKI_DATA_DIR, TMPDIR, KISEKI_TERMINATION_GRACE, and for services the addresses and ports that they listen on."
  type        = map(map(string))

  validation {
    condition     = toset(keys(var.environment)) == toset(["command-api", "query-api", "updater", "migrate", "backup"])
    error_message = "The processes are command-api, query-api, updater, migrate and backup."
  }

  validation {
    condition     = alltrue(flatten([for one in values(var.environment) : [for name in keys(one) : can(regex("^[A-Z][A-Z0-9_]*$", name))]]))
    error_message = "Names of variables are written in capitals."
  }

  validation {
    condition = length(setintersection(
      toset(flatten([for one in values(var.environment) : keys(one)])),
      ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"],
    )) == 0
    error_message = "Tasks use their role; static keys of AWS would be in the state, and the production profile refuses them."
  }
}

variable "task_role_arns" {
  description = "The role of each process."
  type        = map(string)

  validation {
    condition     = alltrue([for process in ["command-api", "query-api", "updater", "migrate", "backup"] : contains(keys(var.task_role_arns), process)])
    error_message = "Every process has a role of its own: command-api, query-api, updater, migrate, backup."
  }
}

variable "execution_role_arns" {
  description = "The role with which ECS starts each process: it pulls the image and writes the log."
  type        = map(string)

  validation {
    condition     = alltrue([for process in ["command-api", "query-api", "updater", "migrate", "backup"] : contains(keys(var.execution_role_arns), process)])
    error_message = "Every process has an execution role: command-api, query-api, updater, migrate, backup."
  }
}

variable "infrastructure_role_arn" {
  description = "The role with which ECS switches the load balancer between blue and green."
  type        = string
}

variable "scheduler_role_arn" {
  description = "The role with which EventBridge Scheduler starts the tasks of `schedules`."
  type        = string
}

variable "subnet_ids" {
  description = "The private subnets, one in each zone."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) >= 2
    error_message = "Tasks are spread over at least two zones."
  }
}

variable "vpc_id" {
  description = "The network of the tasks."
  type        = string
}

variable "balancer_security_group_id" {
  description = "The security group of the load balancer: it alone reaches the APIs, and asks the management port for health."
  type        = string
}

variable "collector_security_group_ids" {
  description = "Security groups of what reads /metrics on the management port, by name; none unless set."
  type        = map(string)
  default     = {}
}

variable "endpoint_security_group_id" {
  description = "The security group of the interface endpoints of AWS."
  type        = string
}

variable "prefix_list_ids" {
  description = "The prefix lists of the gateway endpoints, by service: s3, dynamodb."
  type        = map(string)
}

variable "database_security_group_ids" {
  description = "The security groups of the PostgreSQL servers, by name."
  type        = map(string)
}

variable "rate_store_security_group_id" {
  description = "The security group of the rate store; only the APIs are let out to it."
  type        = string
}

variable "internet" {
  description = "Processes that are let out to the internet, on port 443 alone: the APIs where keys of tokens are at an issuer outside of AWS (KISEKI_JWKS_URL), all where the lease of two regions is in a third."
  type        = set(string)
  default     = []

  validation {
    condition     = length(setsubtract(var.internet, ["command-api", "query-api", "updater", "updater-function", "migrate", "backup"])) == 0
    error_message = "The processes are command-api, query-api, updater, updater-function, migrate and backup."
  }
}

variable "load_balancing" {
  description = "The target groups and listener rules of each API, as the module edge gives them."
  type = map(object({
    target_group_arn           = string
    alternate_target_group_arn = string
    production_rule_arn        = string
    test_rule_arn              = string
  }))

  validation {
    condition     = toset(keys(var.load_balancing)) == toset(["command-api", "query-api"])
    error_message = "The APIs are command-api and query-api."
  }
}

variable "ports" {
  description = "Where the processes listen, which they are told (KISEKI_COMMAND_PORT, KISEKI_QUERY_PORT, KISEKI_MANAGEMENT_PORT), and where the databases do."
  type = object({
    command    = optional(number, 18080)
    query      = optional(number, 18082)
    management = optional(number, 8558)
    database   = optional(number, 5432)
    rate_store = optional(number, 6379)
  })
  default = {}
}

variable "termination_grace" {
  description = "Seconds between SIGTERM and SIGKILL; the processes are told so (KISEKI_TERMINATION_GRACE), and refuse to start when they may need longer."
  type        = number
  default     = 120

  validation {
    condition     = var.termination_grace >= 30 && var.termination_grace <= 120
    error_message = "Fargate gives 120 seconds at most."
  }
}

variable "sizes" {
  description = "What each process has: units of CPU (1024 are one), MiB of memory, GiB of disk. A process with one worker uses one CPU at most."
  type = map(object({
    cpu     = number
    memory  = number
    storage = optional(number, 20)
  }))
  default = {
    command-api = { cpu = 1024, memory = 2048 }
    query-api   = { cpu = 1024, memory = 2048 }
    updater     = { cpu = 1024, memory = 2048 }
    migrate     = { cpu = 512, memory = 1024 }
    backup      = { cpu = 1024, memory = 4096, storage = 100 }
  }

  validation {
    condition     = toset(keys(var.sizes)) == toset(["command-api", "query-api", "updater", "migrate", "backup"])
    error_message = "Every process has a size: command-api, query-api, updater, migrate, backup."
  }

  validation {
    condition     = alltrue([for one in values(var.sizes) : contains(lookup(local.fargate_memory, tostring(one.cpu), []), one.memory)])
    error_message = "Fargate has no task of that size: 256 units of CPU go with 512, 1024 or 2048 MiB; and in steps of 1024 MiB 512 go with 1024 to 4096, 1024 with 2048 to 8192, 2048 with 4096 to 16384, 4096 with 8192 to 30720."
  }

  validation {
    condition     = alltrue([for one in values(var.sizes) : one.storage >= 20 && one.storage <= 200])
    error_message = "A task of Fargate has 20 to 200 GiB of disk."
  }
}

variable "architecture" {
  description = "The processor that the image is built for."
  type        = string
  default     = "ARM64"

  validation {
    condition     = contains(["ARM64", "X86_64"], var.architecture)
    error_message = "The architecture is ARM64 or X86_64."
  }
}

variable "scaling" {
  description = "How many tasks each API may have. `kiseki scale plan` says whether the databases take that."
  type        = map(object({ minimum = number, maximum = number }))
  default = {
    command-api = { minimum = 3, maximum = 20 }
    query-api   = { minimum = 3, maximum = 20 }
  }

  validation {
    condition     = toset(keys(var.scaling)) == toset(["command-api", "query-api"])
    error_message = "The APIs are command-api and query-api."
  }

  validation {
    condition     = alltrue([for one in values(var.scaling) : one.minimum >= 1 && one.minimum <= one.maximum])
    error_message = "There is at least one task, and no more at least than at most."
  }
}

variable "scaling_target" {
  description = "The CPU that tasks are kept at (percent), and how long after tasks were added or taken away the next may be (seconds)."
  type = object({
    cpu                = optional(number, 70)
    scale_out_cooldown = optional(number, 60)
    scale_in_cooldown  = optional(number, 300)
  })
  default = {}

  validation {
    condition     = var.scaling_target.cpu >= 20 && var.scaling_target.cpu <= 90
    error_message = "A target outside 20 to 90 percent either never scales or never rests."
  }
}

variable "updater_tasks" {
  description = "Updaters that run. Each projection is run by one of them, and the other takes over when it ends: a second one shortens a stand-still, a third one only waits."
  type        = number
  default     = 2

  validation {
    condition     = contains([1, 2], var.updater_tasks)
    error_message = "There are one or two updaters."
  }
}

variable "spot" {
  description = "Processes that run on spare capacity, which AWS takes away at two minutes' notice: for development."
  type        = set(string)
  default     = []

  validation {
    condition     = length(setsubtract(var.spot, ["command-api", "query-api", "updater"])) == 0
    error_message = "The services are command-api, query-api and updater."
  }
}

variable "deployment" {
  description = "How a release replaces the tasks of an API: BLUE_GREEN at once, CANARY first with `canary.percent`, LINEAR by `linear.percent` at a time. `bake_minutes` is how long the replaced tasks are kept, ready to take over again. Hooks are functions that ECS asks before it goes on."
  type = object({
    strategy     = optional(string, "BLUE_GREEN")
    bake_minutes = optional(number, 10)
    canary       = optional(object({ percent = optional(number, 10), bake_minutes = optional(number, 10) }), {})
    linear       = optional(object({ percent = optional(number, 10), bake_minutes = optional(number, 3) }), {})
    hooks = optional(list(object({
      function_arn = string
      role_arn     = string
      stages       = list(string)
    })), [])
  })
  default = {}

  validation {
    condition     = contains(["BLUE_GREEN", "CANARY", "LINEAR"], var.deployment.strategy)
    error_message = "The strategy is BLUE_GREEN, CANARY or LINEAR."
  }

  validation {
    condition     = var.deployment.bake_minutes >= 0 && var.deployment.bake_minutes <= 1440
    error_message = "Replaced tasks are kept for at most a day (1440 minutes)."
  }

  validation {
    condition     = var.deployment.canary.percent >= 1 && var.deployment.canary.percent < 100 && var.deployment.linear.percent >= 3 && var.deployment.linear.percent < 100
    error_message = "A canary gets 1 to 99 percent; a step is 3 to 99."
  }

  validation {
    condition = alltrue(flatten([for hook in var.deployment.hooks : [for stage in hook.stages : contains([
      "RECONCILE_SERVICE", "PRE_SCALE_UP", "POST_SCALE_UP", "TEST_TRAFFIC_SHIFT", "POST_TEST_TRAFFIC_SHIFT",
      "PRE_PRODUCTION_TRAFFIC_SHIFT", "PRODUCTION_TRAFFIC_SHIFT", "POST_PRODUCTION_TRAFFIC_SHIFT",
    ], stage)]]))
    error_message = "ECS has no such stage of a deployment; a smoke test belongs to POST_TEST_TRAFFIC_SHIFT."
  }
}

variable "deployment_alarm_names" {
  description = "The alarms that each service watches while it is released, and is rolled back on: command-api, query-api, updater."
  type        = map(list(string))
  default     = {}
}

variable "schedules" {
  description = "What the process backup does, and when (UTC): the arguments of `kiseki`, an expression of EventBridge Scheduler, and whether a failure is told. That of `status` is not: each age that it measures has an alarm."
  type        = map(object({ command = list(string), expression = string, told = optional(bool, true) }))
  default = {
    create  = { command = ["backup", "create"], expression = "cron(15 1 * * ? *)" }
    prune   = { command = ["backup", "prune"], expression = "cron(15 4 * * ? *)" }
    status  = { command = ["dr", "status", "--embedded-metrics"], expression = "rate(1 hour)", told = false }
    audit   = { command = ["audit", "verify"], expression = "cron(15 5 * * ? *)" }
    journal = { command = ["journal", "verify"], expression = "cron(15 6 ? * SUN *)" }
  }

  validation {
    condition     = alltrue([for one in values(var.schedules) : can(regex("^(cron|rate)\\(.+\\)$", one.expression)) && length(one.command) > 0])
    error_message = "A schedule has a command, and an expression such as cron(15 1 * * ? *) or rate(1 hour)."
  }

  validation {
    condition     = !contains(keys(var.schedules), "create") || contains(keys(var.schedules), "prune")
    error_message = "Copies of keys are promised to be gone within seven days: with `create` there has to be a daily `prune`."
  }
}

variable "alarm_topic_arns" {
  description = "The SNS topics that are told of a one-off task which failed and of a deployment that did, by name. Their policies let EventBridge publish."
  type        = map(string)
  default     = {}
}

variable "kms_key_arn" {
  description = "The KMS key of images, logs and schedules."
  type        = string
}

variable "storage_kms_key_arn" {
  description = "The KMS key of the tasks' disks, whose policy has to let Fargate use it; one of AWS unless set."
  type        = string
  default     = null
}

variable "log_group_prefix" {
  description = "What the names of the log groups begin with; `/NAME/` unless set."
  type        = string
  default     = null
}

variable "log_retention_days" {
  description = "Days that logs are kept: one of the numbers that CloudWatch Logs knows."
  type        = number
  default     = 365

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653], var.log_retention_days)
    error_message = "CloudWatch Logs does not know this number of days; 365 is usual."
  }
}

variable "images_kept" {
  description = "Images that the repository keeps, the newest; what is rolled back to has to be among them."
  type        = number
  default     = 100

  validation {
    condition     = var.images_kept >= 10
    error_message = "With fewer than 10 images a release could lose what it may be rolled back to."
  }
}
