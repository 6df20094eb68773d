variable "name" {
  description = "What the names of everything here begin with, such as kiseki-production."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,30}[a-z0-9]$", var.name))
    error_message = "name has 3 to 32 of the characters a-z 0-9 -, begins with a letter and does not end with a dash."
  }
}

variable "tags" {
  description = "Tags of everything that is made here."
  type        = map(string)
  default     = {}
}

variable "region" {
  description = "The region of the tables, the vault and the buckets."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2,4}(-[a-z]+)+-[0-9]{1,2}$", var.region))
    error_message = "A region is written like eu-central-1."
  }
}

variable "account_id" {
  description = "The account. Part of the buckets' names, which are unique in the world."
  type        = string

  validation {
    condition     = can(regex("^[0-9]{12}$", var.account_id))
    error_message = "An account id has 12 digits."
  }
}

variable "kms_key_arn" {
  description = "The KMS key of the vault and of the buckets, in the region."
  type        = string
}

variable "table_arns" {
  description = "The tables that AWS Backup copies, by name: journal, claims and snapshots."
  type        = map(string)

  validation {
    condition     = length(setsubtract(keys(var.table_arns), ["journal", "claims", "snapshots"])) == 0
    error_message = "Only journal, claims and snapshots are backed up here: a copy of keys, revocations or erasures that is kept for long would bring erased persons back."
  }

  validation {
    condition     = contains(keys(var.table_arns), "journal") && contains(keys(var.table_arns), "claims")
    error_message = "A backup without the journal or without the claims is no backup."
  }
}

variable "table_kms_key_arn" {
  description = "The KMS key that the tables are encrypted with: AWS Backup reads with it."
  type        = string
}

variable "schedule" {
  description = "When AWS Backup begins each day (UTC), as a cron expression."
  type        = string
  default     = "cron(0 3 * * ? *)"

  validation {
    condition     = can(regex("^cron\\([^()]+\\)$", var.schedule))
    error_message = "The schedule is written like cron(0 3 * * ? *)."
  }
}

variable "retention_days" {
  description = "How many days a copy is kept."
  type        = number
  default     = 30

  validation {
    condition     = var.retention_days >= 1 && var.retention_days <= 3650 && floor(var.retention_days) == var.retention_days
    error_message = "Copies are kept 1 to 3650 whole days."
  }
}

variable "lock" {
  description = <<-EOT
    What nobody can delete before its time. `governance`: who has the rights can take the lock away. `compliance`: after
    `grace_days` nobody can, not even the account's root user or AWS, and the vault stays until the last copy has ended.
    Copies are kept between `minimum_days` and `maximum_days`. null for no lock.
  EOT
  type = object({
    mode         = string
    minimum_days = optional(number, 7)
    maximum_days = optional(number, 365)
    grace_days   = optional(number, 3)
  })
  default = { mode = "governance" }

  validation {
    condition     = var.lock == null || contains(["governance", "compliance"], try(var.lock.mode, ""))
    error_message = "The mode of the lock is governance or compliance."
  }

  validation {
    condition = var.lock == null || try(
      var.lock.minimum_days >= 1 && var.lock.minimum_days <= var.lock.maximum_days && var.lock.grace_days >= 3, false
    )
    error_message = "The lock keeps at least 1 day, at most maximum_days, and AWS wants 3 days or more of grace."
  }

  validation {
    condition = var.lock == null || try(
      var.retention_days >= var.lock.minimum_days && var.retention_days <= var.lock.maximum_days, false
    )
    error_message = "retention_days has to lie between minimum_days and maximum_days of the lock: AWS refuses every copy otherwise."
  }
}

variable "copy" {
  description = "Another region that gets a copy of each backup, with a KMS key there; null for none. The account needs the advanced features for DynamoDB of AWS Backup, in both regions."
  type = object({
    region         = string
    kms_key_arn    = string
    retention_days = optional(number)
  })
  default = null

  validation {
    condition     = var.copy == null || try(strcontains(var.copy.kms_key_arn, ":kms:${var.copy.region}:"), false)
    error_message = "The copy needs the ARN of a KMS key in its own region."
  }

  validation {
    condition     = var.copy == null || try(var.copy.region != var.region, false)
    error_message = "The copy goes to another region than the tables are in."
  }

  validation {
    condition = var.copy == null || var.lock == null || try(
      coalesce(var.copy.retention_days, var.retention_days) >= var.lock.minimum_days &&
      coalesce(var.copy.retention_days, var.retention_days) <= var.lock.maximum_days, false
    )
    error_message = "The copy's retention_days has to lie between minimum_days and maximum_days of the lock."
  }
}

variable "notifications" {
  description = "The SNS topic that hears of backups and copies that failed; null for none. Its policy lets backup.amazonaws.com publish."
  type        = object({ topic_arn = string })
  default     = null
}

variable "backup_days" {
  description = "How many days `kiseki backup prune` keeps backups of journal and audit log (KISEKI_BACKUP_DAYS): versions that were overwritten or deleted are kept as long."
  type        = number
  default     = 30

  validation {
    condition     = var.backup_days >= 1 && var.backup_days <= 3650 && floor(var.backup_days) == var.backup_days
    error_message = "Backups are kept 1 to 3650 whole days."
  }
}

variable "private_days" {
  description = "After how many days S3 deletes what lies in the bucket of keys and read models. 6 at most: S3 counts whole days of UTC and takes up to a day, and the promise to erased persons is seven."
  type        = number
  default     = 6

  validation {
    condition     = var.private_days >= 1 && var.private_days <= 6 && floor(var.private_days) == var.private_days
    error_message = "Copies of keys and read models end after 1 to 6 whole days."
  }
}

variable "access_log_days" {
  description = "How many days the logs of who used the buckets are kept."
  type        = number
  default     = 365

  validation {
    condition     = var.access_log_days >= 1 && floor(var.access_log_days) == var.access_log_days
    error_message = "Access logs are kept at least one whole day."
  }
}
