variable "name" {
  description = "What the names of everything here begin with, such as kiseki-production."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,30}[a-z0-9]$", var.name)) && !strcontains(var.name, "--")
    error_message = "name has 3 to 32 of the characters a-z 0-9 -, begins with a letter, does not end with a dash and has no two dashes in a row."
  }
}

variable "purpose" {
  description = "What the database is for, as the end of its name: read-model, or anchors for one that keeps the heads of the audit log apart."
  type        = string
  default     = "read-model"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,20}[a-z0-9]$", var.purpose)) && !strcontains(var.purpose, "--")
    error_message = "purpose has 3 to 22 of the characters a-z 0-9 -, begins with a letter and does not end with a dash."
  }
}

variable "tags" {
  description = "Tags of everything that is made here."
  type        = map(string)
  default     = {}
}

variable "region" {
  description = "The region of the database."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2,4}(-[a-z]+)+-[0-9]{1,2}$", var.region))
    error_message = "A region is written like eu-central-1."
  }
}

variable "account_id" {
  description = "The account: only RDS of this account may take the role of the measurements."
  type        = string

  validation {
    condition     = can(regex("^[0-9]{12}$", var.account_id))
    error_message = "An account id has 12 digits."
  }
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
    error_message = "The database needs subnets in three zones."
  }
}

variable "client_security_group_ids" {
  description = "The security groups of the processes that may connect, by process."
  type        = map(string)
}

variable "kms_key_arn" {
  description = "The KMS key of storage, backups, measurements and the master user's secret."
  type        = string
}

variable "log_kms_key_arn" {
  description = "The KMS key of the logs; its policy lets CloudWatch Logs use it."
  type        = string
}

variable "log_retention_days" {
  description = "How many days the server's logs are kept. They hold statements without values, users and addresses."
  type        = number
  default     = 30

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400], var.log_retention_days)
    error_message = "CloudWatch Logs keeps 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365 or 400 days."
  }
}

variable "engine_version" {
  description = "The major version of PostgreSQL, 16 or later. RDS chooses the minor one and keeps it up to date, so none is named here."
  type        = string
  default     = "17"

  validation {
    condition     = can(regex("^[0-9]{2}$", var.engine_version)) && try(tonumber(var.engine_version) >= 16, false)
    error_message = "engine_version is a major version of PostgreSQL, 16 or later, such as 17."
  }
}

variable "allow_major_version_upgrade" {
  description = "Whether engine_version may be raised: a deliberate step, which restarts the server in its maintenance window."
  type        = bool
  default     = false
}

variable "instance_class" {
  description = "The size of the instance. `kiseki scale plan --limit CLASS` says whether the pools of all tasks fit."
  type        = string
  default     = "db.r8g.large"

  validation {
    condition     = can(regex("^db\\.[a-z0-9-]+\\.[a-z0-9]+$", var.instance_class))
    error_message = "A class is written like db.r8g.large."
  }
}

variable "multi_az" {
  description = "Whether a standby in another zone takes over when the instance or its zone fails."
  type        = bool
  default     = true
}

variable "max_connections" {
  description = "The most connections of the server; null for what RDS computes from the memory of the class."
  type        = number
  default     = null

  validation {
    condition     = var.max_connections == null || try(var.max_connections >= 30 && var.max_connections <= 5000, false)
    error_message = "max_connections is 30 to 5000, or null for what RDS computes."
  }
}

variable "storage_gib" {
  description = "The storage at first, and the most that it grows to by itself, in GiB."
  type        = object({ first = number, most = number })
  default     = { first = 50, most = 500 }

  validation {
    condition     = var.storage_gib.first >= 20 && var.storage_gib.most >= ceil(var.storage_gib.first * 1.26)
    error_message = "At least 20 GiB at first, and a maximum that is more than a quarter above it: RDS refuses or warns otherwise."
  }
}

variable "backup_days" {
  description = "How many days back RDS can restore to any second. Read models hold personal data, and what was erased is to be gone from their backups within seven days."
  type        = number
  default     = 7

  validation {
    condition     = var.backup_days >= 1 && var.backup_days <= 7 && floor(var.backup_days) == var.backup_days
    error_message = "Backups of read models are kept 1 to 7 whole days: longer would break the promise of an erasure."
  }
}

variable "backup_window" {
  description = "When RDS takes its daily snapshot (UTC)."
  type        = string
  default     = "02:00-02:30"

  validation {
    condition     = can(regex("^([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]$", var.backup_window))
    error_message = "The window is written like 02:00-02:30."
  }
}

variable "maintenance_window" {
  description = "When RDS may patch and restart (UTC)."
  type        = string
  default     = "sun:03:30-sun:04:30"

  validation {
    condition     = can(regex("^[a-z]{3}:[0-2][0-9]:[0-5][0-9]-[a-z]{3}:[0-2][0-9]:[0-5][0-9]$", var.maintenance_window))
    error_message = "The window is written like sun:03:30-sun:04:30."
  }
}

variable "ca_certificate" {
  description = "The authority of the server's certificate: one of those in the file of certificates."
  type        = string
  default     = "rds-ca-rsa2048-g1"
}

variable "certificates_path" {
  description = "Where the processes have the file with the authorities of RDS."
  type        = string
  default     = "/etc/kiseki/rds-global-bundle.pem"

  validation {
    condition     = can(regex("^/[A-Za-z0-9/._-]+$", var.certificates_path))
    error_message = "certificates_path is the absolute path of a file, of plain characters."
  }
}

variable "deletion_protection" {
  description = "Whether RDS refuses to delete the database."
  type        = bool
  default     = true
}

variable "databases" {
  description = "The databases on the server, each with the role that logs in to it with IAM. `kiseki database prepare` makes them from the settings."
  type        = map(string)
  default     = { kiseki = "kiseki", audit = "kiseki_audit", anchors = "kiseki_anchors" }

  validation {
    condition = alltrue([
      for database, role in var.databases : can(regex("^[a-z][a-z0-9_]{0,30}$", database)) && can(regex("^[a-z][a-z0-9_]{0,30}$", role))
    ])
    error_message = "Databases and roles have up to 31 of the characters a-z 0-9 _ and begin with a letter."
  }

  validation {
    condition     = !contains(values(var.databases), "kiseki_master")
    error_message = "kiseki_master is the master user, which no process uses."
  }
}

variable "replica" {
  description = <<-EOT
    A read replica in another region; null for none. Read models can always be built again, so it only makes a failover
    faster. While it is a replica it is read-only: the audit log of that region does not belong on it.
  EOT
  type = object({
    region             = string
    kms_key_arn        = string
    log_kms_key_arn    = string
    subnet_ids         = list(string)
    security_group_ids = list(string)
    instance_class     = optional(string)
    multi_az           = optional(bool, false)
  })
  default = null

  validation {
    condition     = var.replica == null || try(var.replica.region != var.region, false)
    error_message = "The replica is in another region than the database."
  }

  validation {
    condition = var.replica == null || try(
      strcontains(var.replica.kms_key_arn, ":kms:${var.replica.region}:") &&
      strcontains(var.replica.log_kms_key_arn, ":kms:${var.replica.region}:"), false
    )
    error_message = "The replica needs the ARNs of KMS keys in its own region."
  }

  validation {
    condition = var.replica == null || try(
      length(var.replica.subnet_ids) >= 3 && length(var.replica.security_group_ids) >= 1, false
    )
    error_message = "The replica needs subnets in three zones and a security group of its own region."
  }
}

variable "master_password" {
  description = <<-EOT
    The password of the master user: 32 to 128 of the characters A-Z a-z 0-9 _ -. Only with a replica, when that is added and
    together with a new master_password_version; it goes to RDS and to a secret, and is in neither plan nor state.
  EOT
  type        = string
  default     = null
  ephemeral   = true
  sensitive   = true

  validation {
    condition     = var.master_password == null || can(regex("^[A-Za-z0-9_-]{32,128}$", var.master_password))
    error_message = "The password has 32 to 128 of the characters A-Z a-z 0-9 _ -; `openssl rand -hex 32` makes one."
  }
}

variable "master_password_version" {
  description = "Raised by one whenever a new password is given: nothing else makes Terraform send it."
  type        = number
  default     = 1

  validation {
    condition     = var.master_password_version >= 1 && floor(var.master_password_version) == var.master_password_version
    error_message = "master_password_version is a whole number, 1 or more."
  }
}
