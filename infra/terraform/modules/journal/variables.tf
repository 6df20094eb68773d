variable "name" {
  description = "What the names of all tables begin with: the prefix in KISEKI_JOURNAL=dynamodb://PREFIX?region=…"
  type        = string

  validation {
    condition     = can(regex("^[a-zA-Z0-9_.-]{1,100}$", var.name))
    error_message = "A prefix of tables has 1 to 100 of the characters a-z A-Z 0-9 _ . -"
  }
}

variable "tags" {
  description = "Tags of everything that is made here."
  type        = map(string)
  default     = {}
}

variable "region" {
  description = "The region of the tables."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2,4}(-[a-z]+)+-[0-9]{1,2}$", var.region))
    error_message = "A region is written like eu-central-1."
  }
}

variable "kms_key_arn" {
  description = "The KMS key that the tables are encrypted with, in their region."
  type        = string
}

variable "deletion_protection" {
  description = "Whether DynamoDB refuses to delete the tables."
  type        = bool
  default     = true
}

variable "maximum_read_units" {
  description = "The most read request units a second that a table, or its index, may cost; -1 for no maximum."
  type        = number
  default     = 10000

  validation {
    condition     = var.maximum_read_units == -1 || var.maximum_read_units >= 1
    error_message = "maximum_read_units is at least 1, or -1 for no maximum."
  }
}

variable "maximum_write_units" {
  description = "The most write request units a second that a table, or its index, may cost; -1 for no maximum."
  type        = number
  default     = 5000

  validation {
    condition     = var.maximum_write_units == -1 || var.maximum_write_units >= 1
    error_message = "maximum_write_units is at least 1, or -1 for no maximum."
  }
}

variable "recovery_days" {
  description = "How many days back the journal, the claims and the snapshots can be restored to any second."
  type        = number
  default     = 35

  validation {
    condition     = var.recovery_days >= 1 && var.recovery_days <= 35 && floor(var.recovery_days) == var.recovery_days
    error_message = "Point-in-time recovery goes 1 to 35 whole days back."
  }
}

variable "key_recovery_days" {
  description = "The same for keys and revocations: seven at most, so that the key of an erased person is gone in a week."
  type        = number
  default     = 7

  validation {
    condition = (
      var.key_recovery_days >= 1 && var.key_recovery_days <= 7 && floor(var.key_recovery_days) == var.key_recovery_days
    )
    error_message = "Keys of people may be kept 1 to 7 whole days."
  }
}

variable "replicas" {
  description = <<-EOT
    Regions that get a replica of each table but `operations`, with the ARN of a KMS key there. Taking a region out deletes
    the items there, and with them what was never replicated: read docs/operations/lost-region.md first.
  EOT
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for region, key in var.replicas : strcontains(key, ":kms:${region}:")])
    error_message = "Each replica needs the ARN of a KMS key in its own region."
  }

  validation {
    condition     = !contains(keys(var.replicas), var.region)
    error_message = "A replica is in another region than the tables."
  }
}

variable "lease_region" {
  description = "The third region, where the lease is; null with one region."
  type        = string
  default     = null
}

variable "lease_kms_key_arn" {
  description = "A KMS key in the region of the lease; null for the one that AWS keeps for DynamoDB there."
  type        = string
  default     = null
}
