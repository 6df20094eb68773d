# What differs between environments. Everything else is decided here or in the modules, the same for all: what was tried
# in one environment is what runs in the next.

variable "project" {
  description = "The name of the service; with the environment it names everything: PROJECT-ENVIRONMENT."
  type        = string
  default     = "kiseki"

  validation {
    condition     = can(regex("^[a-z][a-z0-9]{1,9}$", var.project))
    error_message = "A project has 2 to 10 of the characters a-z 0-9 and begins with a letter."
  }
}

variable "environment" {
  description = "development, staging or production; a word of your own for one more."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9]{1,10}$", var.environment))
    error_message = "An environment has 2 to 11 of the characters a-z 0-9 and begins with a letter."
  }
}

variable "account_id" {
  description = "The account that this environment is in, and in no other."
  type        = string

  validation {
    condition     = can(regex("^[0-9]{12}$", var.account_id))
    error_message = "The id of an account has 12 digits; `aws sts get-caller-identity` shows it."
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

variable "zones" {
  description = "The letters of its availability zones, three to six. Only ever add at the end."
  type        = list(string)
  default     = ["a", "b", "c"]
}

variable "cidr" {
  description = "The addresses of the network; no two environments that are ever joined have the same."
  type        = string
}

variable "nat" {
  description = "The way out to the internet: none, one or per-zone. The token issuer's keys need one (identity.jwks_url)."
  type        = string
  default     = "none"
}

variable "streams_endpoint" {
  description = "Whether the streams of DynamoDB are reached by an endpoint in the network; false, with nat, for over the internet."
  type        = bool
  default     = true
}

variable "domain" {
  description = "The domain of the APIs, which are commands.DOMAIN and queries.DOMAIN."
  type        = string
}

variable "zone_id" {
  description = "The public Route 53 zone of the domain; null where DNS is kept elsewhere, and then certificate_arn has to be set."
  type        = string
  default     = null

  validation {
    condition     = var.zone_id == null || can(regex("^Z[A-Z0-9]+$", var.zone_id))
    error_message = "A zone is named by its id, such as Z0123456789ABCDEFGHIJ; `aws route53 list-hosted-zones` shows it."
  }
}

variable "certificate_arn" {
  description = "A certificate of ACM for both names; one is made unless set."
  type        = string
  default     = null
}

variable "client_cidrs" {
  description = "The addresses that may reach the APIs."
  type        = set(string)
  default     = ["0.0.0.0/0"]
}

variable "test_cidrs" {
  description = "The addresses that may reach what is not released yet (port 8443)."
  type        = set(string)
  default     = []
}

variable "cors_origins" {
  description = "Origins whose pages may call the APIs (KISEKI_CORS_ORIGINS)."
  type        = list(string)
  default     = []

  validation {
    condition = alltrue([
      for origin in var.cors_origins : can(regex("^https://(\\[[0-9a-f:]+\\]|[a-z0-9.-]+)(:[0-9]{1,5})?$", origin))
    ])
    error_message = "An origin is what a browser sends, over TLS: https://console.example.com, in lower case, without a path."
  }
}

variable "identity" {
  description = "Who issues tokens: its `iss`, the `aud` that they name, and where its public keys are. Without jwks_url tokens are of HS256, with the secret NAME/token."
  type = object({
    issuer   = string
    audience = string
    jwks_url = optional(string)
  })

  validation {
    condition     = var.identity.jwks_url == null || startswith(coalesce(var.identity.jwks_url, "none"), "https://")
    error_message = "identity.jwks_url begins with https://, or anybody in between could give keys."
  }

  validation {
    condition     = var.identity.jwks_url == null || var.nat != "none"
    error_message = "identity.jwks_url is asked over the internet, to which there is no way: set nat to one or per-zone, or take jwks_url out."
  }

  validation {
    condition     = length(var.identity.issuer) > 0 && length(var.identity.audience) > 0
    error_message = "identity.issuer and identity.audience are what tokens have to name; neither may be empty."
  }
}

variable "image" {
  description = "The first image, REPOSITORY@sha256:…; null until it was pushed. Later ones are the command line's."
  type        = string
  default     = null
}

variable "application" {
  description = "The application that the image serves, as MODULE:ATTRIBUTE; the shipped user accounts unless set."
  type        = string
  default     = null
}

variable "start_services" {
  description = "Whether there are services. False until the database was prepared and `kiseki migrate` has run."
  type        = bool
  default     = true
}

variable "sizes" {
  description = "What each process has: units of CPU, MiB of memory, GiB of disk."
  type = map(object({
    cpu     = number
    memory  = number
    storage = optional(number, 20)
  }))
}

variable "scaling" {
  description = "How many tasks each API may have."
  type        = map(object({ minimum = number, maximum = number }))
}

variable "updater_tasks" {
  description = "Updaters that run: one, or two for a shorter stand-still."
  type        = number
}

variable "spot" {
  description = "Processes that run on spare capacity."
  type        = set(string)
  default     = []
}

variable "deployment" {
  description = "How a release replaces the tasks of an API: BLUE_GREEN, CANARY or LINEAR, and for how many minutes the old ones stay."
  type = object({
    strategy     = string
    bake_minutes = number
  })
}

variable "package" {
  description = "The first package of the Lambda updater in the artefact bucket; null for none, and then the stand-alone updater does all."
  type = object({
    key     = string
    version = optional(string)
  })
  default = null
}

variable "function_concurrency" {
  description = "Environments of the Lambda updater at a time, at most; the account keeps as many for it. Each opens connections to the database."
  type        = number
  default     = 20
}

variable "database" {
  description = "PostgreSQL of the read models and the audit log: class, standby, storage at first and at most (GiB), the largest number of connections (null: by the class), and the days that RDS can go back, 7 at most."
  type = object({
    class           = string
    multi_az        = bool
    storage         = number
    storage_most    = number
    max_connections = optional(number)
    backup_days     = optional(number, 7)
  })
}

variable "rate_store" {
  description = "The store that rate limits are counted in: type of a node, and how many."
  type = object({
    node_type = string
    nodes     = number
  })
}

variable "rate_store_password" {
  description = "The password of the rate store, when it is made or changed: `openssl rand -hex 32`. In neither plan nor state."
  type        = string
  default     = null
  ephemeral   = true
  sensitive   = true
}

variable "rate_store_password_version" {
  description = "Raised by one whenever a new password is given."
  type        = number
  default     = 1
}

variable "audit_anchors" {
  description = "Where heads of the audit log are kept (KISEKI_AUDIT_ANCHORS): postgresql://… of a database that another account owns. A database of its own beside the read models unless set, which an administrator of this account could change together with the log."
  type        = string
  default     = null

  validation {
    condition     = var.audit_anchors == null || startswith(coalesce(var.audit_anchors, "none"), "postgresql://")
    error_message = "audit_anchors is the URL of a database, postgresql://…, or null."
  }
}

variable "capacity" {
  description = "The most request units a second that a table may cost, reads and writes; -1 for no maximum."
  type = object({
    reads  = number
    writes = number
  })
}

variable "backup" {
  description = "AWS Backup of journal, claims and snapshots: days that a copy is kept, and the lock of the vault (governance, compliance, or none)."
  type = object({
    days = number
    lock = string
  })

  validation {
    condition     = contains(["none", "governance", "compliance"], var.backup.lock)
    error_message = "backup.lock is none, governance or compliance."
  }
}

variable "recovery_region" {
  description = "Another region with replicas of tables, keys and secrets and a copy of each backup; null for none. Needs lease_region."
  type        = string
  default     = null

  validation {
    condition     = (var.recovery_region == null) == (var.lease_region == null)
    error_message = "Two regions need a third one for the lease, which says who writes: set recovery_region and lease_region, or neither."
  }

  validation {
    condition     = var.recovery_region == null || var.nat != "none"
    error_message = "The lease is asked over the internet: set nat to one or per-zone."
  }
}

variable "lease_region" {
  description = "The third region, where the lease is; null with one region."
  type        = string
  default     = null
}

variable "database_replica" {
  description = "A read replica of the database in recovery_region, in a network that is there: its isolated subnets and security groups; null for none. It only makes a failover faster: read models can always be built again."
  type = object({
    subnet_ids         = list(string)
    security_group_ids = list(string)
    class              = optional(string)
    multi_az           = optional(bool, false)
  })
  default = null

  validation {
    condition     = var.database_replica == null || var.recovery_region != null
    error_message = "A replica of the database is in recovery_region: set that too."
  }
}

variable "database_admin_password" {
  description = "The password of the database's administrator, which RDS can't keep where there is a replica: when database_replica is set, or the password changed. `openssl rand -hex 32`. In neither plan nor state."
  type        = string
  default     = null
  ephemeral   = true
  sensitive   = true
}

variable "database_admin_password_version" {
  description = "Raised by one whenever a new password of the database's administrator is given."
  type        = number
  default     = 1
}

variable "operator_principals" {
  description = "ARNs of the roles and users that may run one-off tasks such as a restore."
  type        = list(string)
  default     = []
}

variable "operators_need_mfa" {
  description = "Whether operators have to have signed in with a second factor. Single sign-on does not tell AWS: false there."
  type        = bool
  default     = true
}

variable "key_administrators" {
  description = "ARNs of principals that may administer the KMS keys; whoever IAM allows it unless set."
  type        = list(string)
  default     = []
}

variable "alarm_emails" {
  description = "Who is told of alarms and of the budget; each has to confirm a mail of AWS."
  type        = set(string)

  validation {
    condition     = length(var.alarm_emails) > 0 && alltrue([for one in var.alarm_emails : can(regex("^[^@ ]+@[^@ ]+$", one))])
    error_message = "Name at least one address: an alarm that nobody hears is none."
  }
}

variable "budget_dollars" {
  description = "What a month may cost (US dollars) before people are told."
  type        = number

  validation {
    condition     = var.budget_dollars > 0
    error_message = "A budget is more than 0 US dollars a month."
  }
}

variable "deletion_protection" {
  description = "Whether AWS refuses to delete what can't be made again."
  type        = bool
  default     = true
}

variable "log_days" {
  description = "Days that logs of processes are kept."
  type        = number
  default     = 365
}
