variable "name" {
  description = "What the names of everything here begin with, such as kiseki-production."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,30}[a-z0-9]$", var.name)) && !strcontains(var.name, "--")
    error_message = "name has 3 to 32 of the characters a-z 0-9 -, begins with a letter, does not end with a dash and has no two dashes in a row."
  }
}

variable "tags" {
  description = "Tags of everything that is made here."
  type        = map(string)
  default     = {}
}

variable "vpc_id" {
  description = "The network."
  type        = string
}

variable "subnet_ids" {
  description = "The isolated subnets, of three zones or more."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) >= 3
    error_message = "The store needs subnets in three zones."
  }
}

variable "client_security_group_ids" {
  description = "The security groups of the processes that may connect, by process: those with an API."
  type        = map(string)
}

variable "kms_key_arn" {
  description = "The KMS key of what is at rest."
  type        = string
}

variable "secret_arn" {
  description = "The secret that gets the URL of the store, as the field `value` of a JSON object: what KISEKI_RATE_STORE refers to."
  type        = string
}

variable "log_kms_key_arn" {
  description = "The KMS key of the logs; its policy lets CloudWatch Logs use it."
  type        = string
}

variable "log_retention_days" {
  description = "How many days the logs of the store are kept."
  type        = number
  default     = 30

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400], var.log_retention_days)
    error_message = "CloudWatch Logs keeps 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365 or 400 days."
  }
}

variable "engine_version" {
  description = "The version of Valkey: 7.2, 8.0 or later."
  type        = string
  default     = "8.0"

  validation {
    condition     = can(regex("^(7\\.2|[89]\\.[0-9])$", var.engine_version))
    error_message = "engine_version is 7.2, 8.0 or a later one of Valkey."
  }
}

variable "node_type" {
  description = "The size of a node. Limits take about a kilobyte for each subject or address that was active within an hour."
  type        = string
  default     = "cache.t4g.small"

  validation {
    condition     = can(regex("^cache\\.[a-z0-9]+\\.[a-z0-9]+$", var.node_type))
    error_message = "A type is written like cache.t4g.small."
  }
}

variable "nodes" {
  description = "How many nodes: one that writes and others that take over, in other zones. One alone is for environments that may pause."
  type        = number
  default     = 2

  validation {
    condition     = var.nodes >= 1 && var.nodes <= 6 && floor(var.nodes) == var.nodes
    error_message = "One to six nodes."
  }
}

variable "maintenance_window" {
  description = "When ElastiCache may patch (UTC)."
  type        = string
  default     = "sun:04:30-sun:05:30"

  validation {
    condition     = can(regex("^[a-z]{3}:[0-2][0-9]:[0-5][0-9]-[a-z]{3}:[0-2][0-9]:[0-5][0-9]$", var.maintenance_window))
    error_message = "The window is written like sun:04:30-sun:05:30."
  }
}

variable "password" {
  description = <<-EOT
    The password of the processes: 32 to 128 of the characters A-Z a-z 0-9 _ -. Needed when the store is made, and to change
    it together with password_version; it goes to ElastiCache and to the secret, and is in neither plan nor state.
    If an apply is interrupted, run it again with the same one.
  EOT
  type        = string
  default     = null
  ephemeral   = true
  sensitive   = true

  validation {
    condition     = var.password == null || can(regex("^[A-Za-z0-9_-]{32,128}$", var.password))
    error_message = "The password has 32 to 128 of the characters A-Z a-z 0-9 _ -; `openssl rand -hex 32` makes one."
  }
}

variable "password_version" {
  description = "Raised by one whenever a new password is given: nothing else makes Terraform send it."
  type        = number
  default     = 1

  validation {
    condition     = var.password_version >= 1 && floor(var.password_version) == var.password_version
    error_message = "password_version is a whole number, 1 or more."
  }
}
