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

variable "function_name" {
  description = "The name of the function; `NAME-updater` unless set."
  type        = string
  default     = null

  validation {
    condition     = var.function_name == null || can(regex("^[a-zA-Z0-9_-]{1,64}$", var.function_name))
    error_message = "The name of a function has 1 to 64 of the characters a-z A-Z 0-9 _ -"
  }
}

variable "artefact_bucket" {
  description = "The name of the bucket that takes the packages of the function. It is made here; names of buckets are unique in all of AWS."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.artefact_bucket))
    error_message = "The name of a bucket has 3 to 63 of the characters a-z 0-9 - and neither begins nor ends with -."
  }
}

variable "failure_bucket" {
  description = "The name of the bucket that takes the records which the function gave up. It is made here."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.failure_bucket)) && var.failure_bucket != var.artefact_bucket
    error_message = "The name of a bucket has 3 to 63 of the characters a-z 0-9 - and neither begins nor ends with -; each bucket has its own."
  }
}

variable "access_log_bucket" {
  description = "The name of a bucket in the region that takes the access logs of both buckets; null for none."
  type        = string
  default     = null
}

variable "package" {
  description = <<-EOT
    The first package of the function: a zip in the artefact bucket. null for no function yet; then the stand-alone updater
    does all. Later packages are released by the command line, and what is said here has no effect on a function that exists.
  EOT
  type = object({
    bucket  = string
    key     = string
    version = optional(string)
  })
  default = null
}

variable "runtime" {
  description = "The runtime of the package: the Python that it was built for."
  type        = string
  default     = "python3.13"

  validation {
    condition     = contains(["python3.11", "python3.12", "python3.13", "python3.14"], var.runtime)
    error_message = "The runtime is python3.11, python3.12, python3.13 or python3.14."
  }
}

variable "architecture" {
  description = "The architecture of the package: arm64 or x86_64."
  type        = string
  default     = "arm64"

  validation {
    condition     = contains(["arm64", "x86_64"], var.architecture)
    error_message = "The architecture is arm64 or x86_64."
  }
}

variable "role_arn" {
  description = "The role that the function runs as."
  type        = string
}

variable "environment" {
  description = <<-EOT
    The settings of the function. The stores, the master key and the ledger of erasures are required, the same as those of
    the other processes; files are those of the package (/var/task).
  EOT
  type        = map(string)

  validation {
    condition = alltrue([
      for setting in ["KISEKI_JOURNAL", "KISEKI_KEYS", "KISEKI_READ_MODEL", "KISEKI_MASTER_KEY", "KISEKI_ERASURE_LEDGER"] :
      try(length(var.environment[setting]) > 0, false)
    ])
    error_message = "The function needs KISEKI_JOURNAL, KISEKI_KEYS, KISEKI_READ_MODEL, KISEKI_MASTER_KEY and KISEKI_ERASURE_LEDGER."
  }

  validation {
    condition     = try(startswith(var.environment["KISEKI_JOURNAL"], "dynamodb://"), true)
    error_message = "The function reads a stream of DynamoDB, so KISEKI_JOURNAL is dynamodb://…"
  }

  validation {
    condition     = alltrue([for setting, value in var.environment : !can(regex("://[^/@]*:[^/@]+@", value))])
    error_message = "A password in a URL would be in the state and in the console; sign in with auth=aws-iam, or name a secret (aws-sm://…)."
  }
}

variable "subnet_ids" {
  description = "The private subnets that the function is in."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) >= 2
    error_message = "The function needs subnets in at least two zones."
  }
}

variable "security_group_ids" {
  description = "The security groups of the function: they let it reach the database and the endpoints of AWS."
  type        = list(string)

  validation {
    condition     = length(var.security_group_ids) >= 1
    error_message = "The function needs a security group."
  }
}

variable "kms_key_arn" {
  description = "The KMS key for the settings, the buckets and the log of the function."
  type        = string
}

variable "stream_arn" {
  description = "The stream of the journal's table."
  type        = string

  validation {
    condition     = can(regex(":table/.+/stream/.+$", var.stream_arn))
    error_message = "stream_arn is the ARN of a table's stream (…:table/NAME/stream/TIME), not of the table."
  }
}

variable "enabled" {
  description = "Whether the mapping hands the function records. The stream forgets after 24 hours, so not for longer."
  type        = bool
  default     = true
}

variable "memory_megabytes" {
  description = "Memory of an environment of the function; CPU goes with it (1,769 MB have one core)."
  type        = number
  default     = 1024

  validation {
    condition     = var.memory_megabytes >= 256 && var.memory_megabytes <= 10240 && floor(var.memory_megabytes) == var.memory_megabytes
    error_message = "The function has 256 to 10240 MB."
  }
}

variable "timeout_seconds" {
  description = "How long the function may work on a batch. It gives back what is not done a second before."
  type        = number
  default     = 60

  validation {
    condition     = var.timeout_seconds >= 10 && var.timeout_seconds <= 900 && floor(var.timeout_seconds) == var.timeout_seconds
    error_message = "The function has 10 to 900 seconds."
  }
}

variable "reserved_concurrency" {
  description = "Environments of the function at a time, at most; also what the account keeps for it. Each opens connections to PostgreSQL: `kiseki scale plan --tasks lambda=0-N` counts them."
  type        = number
  default     = 20

  validation {
    condition     = var.reserved_concurrency >= 1 && floor(var.reserved_concurrency) == var.reserved_concurrency
    error_message = "At least one environment has to be allowed."
  }
}

variable "parallelization_factor" {
  description = "Batches of a shard at a time. The order within a stream of the journal is kept."
  type        = number
  default     = 1

  validation {
    condition     = contains(range(1, 11), var.parallelization_factor)
    error_message = "A shard has 1 to 10 batches at a time."
  }

  validation {
    condition     = var.parallelization_factor <= var.reserved_concurrency
    error_message = "One shard alone would want more environments than reserved_concurrency allows."
  }
}

variable "batch_size" {
  description = "Records of a batch at most. The function applies 500 in a transaction."
  type        = number
  default     = 500

  validation {
    condition     = var.batch_size >= 1 && var.batch_size <= 10000 && floor(var.batch_size) == var.batch_size
    error_message = "A batch has 1 to 10000 records; AWS cuts it at 6 MB."
  }
}

variable "batching_window_seconds" {
  description = "How long Lambda waits for a full batch: fewer invocations, and read models that are so much later."
  type        = number
  default     = 0

  validation {
    condition     = var.batching_window_seconds >= 0 && var.batching_window_seconds <= 300 && floor(var.batching_window_seconds) == var.batching_window_seconds
    error_message = "The window is 0 to 300 whole seconds."
  }
}

variable "maximum_record_age_seconds" {
  description = "How old a record may get before the function gives it up and it goes to the failure bucket. The stream forgets it after 24 hours without a word."
  type        = number
  default     = 82800

  validation {
    condition     = var.maximum_record_age_seconds >= 3600 && var.maximum_record_age_seconds <= 85500
    error_message = "The age is 3600 to 85500 seconds: an outage of an hour is none that records are given up for, and a quarter before 24 hours the destination has to be told."
  }
}

variable "maximum_retry_attempts" {
  description = "How often a batch is tried again; -1 for as often as maximum_record_age_seconds allows."
  type        = number
  default     = -1

  validation {
    condition     = var.maximum_retry_attempts == -1 || (var.maximum_retry_attempts >= 1000 && var.maximum_retry_attempts <= 10000)
    error_message = "The retries are -1, or 1000 to 10000: fewer would be used up by a failover of the database."
  }
}

variable "failure_days" {
  description = "For how many days records that were given up are kept."
  type        = number
  default     = 30

  validation {
    condition     = var.failure_days >= 7 && var.failure_days <= 365 && floor(var.failure_days) == var.failure_days
    error_message = "Records that were given up are kept 7 to 365 whole days."
  }
}

variable "log_group_name" {
  description = "The log group of the function, which its role may write to. It is made here, also without a function."
  type        = string
}

variable "log_retention_days" {
  description = "For how many days the log is kept."
  type        = number
  default     = 365

  validation {
    condition     = contains([30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653], var.log_retention_days)
    error_message = "CloudWatch keeps logs for 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288 or 3653 days."
  }
}
