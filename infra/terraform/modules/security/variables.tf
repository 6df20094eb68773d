variable "name" {
  description = "What the names of everything here begin with; also the prefix of the tables."
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

variable "replica_regions" {
  description = "Regions that can take over: keys and secrets have copies there, and roles may use the stores there."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for region in var.replica_regions : can(regex("^[a-z]{2,4}(-[a-z]+)+-[0-9]{1,2}$", region))])
    error_message = "A region is written like eu-central-1."
  }

  validation {
    condition     = !contains(var.replica_regions, var.region)
    error_message = "A replica is in another region than the service."
  }
}

variable "lease_region" {
  description = "The third region, where the lease is; null with one region."
  type        = string
  default     = null

  validation {
    condition     = var.lease_region == null || !contains(concat([var.region], tolist(var.replica_regions)), coalesce(var.lease_region, "none"))
    error_message = "The lease has to be in a third region."
  }
}

variable "multi_region_master_key" {
  description = "Whether the master key can get replicas in other regions. KMS can't change it later."
  type        = bool
  default     = true
}

variable "key_administrators" {
  description = "ARNs of principals (patterns may hold * and ?) that may administer the keys; everybody in the account whom IAM allows it unless set. Whoever applies this has to be among them."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.key_administrators : can(regex("^arn:aws[a-z-]*:(iam|sts)::[0-9]{12}:", arn))])
    error_message = "An administrator is the ARN of a role or a user."
  }
}

variable "operator_principals" {
  description = "ARNs of the principals that may become operators, who run one-off tasks such as a restore; there is no such role unless there is one."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.operator_principals : can(regex("^arn:aws[a-z-]*:iam::[0-9]{12}:(role|user)/", arn))])
    error_message = "An operator is the ARN of a role or a user."
  }
}

variable "operators_need_mfa" {
  description = "Whether people have to have signed in with a second factor. Single sign-on does not tell AWS: false there."
  type        = bool
  default     = true
}

variable "token_secret" {
  description = "Whether there is a secret for HS256 tokens (KISEKI_TOKEN_SECRET); false where KISEKI_JWKS_URL names the issuer's public keys."
  type        = bool
  default     = false
}

variable "database_resource_id" {
  description = "The resource id (db-…) of the RDS instance; null for none, and then nobody may sign in with IAM."
  type        = string
  default     = null
}

variable "database_admin_secret_arn" {
  description = "The secret of the RDS instance's administrator, which operators alone may read; null for none."
  type        = string
  default     = null
}

variable "replica_database_resource_ids" {
  description = "The same of the instance in each replica region."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for region in keys(var.replica_database_resource_ids) : contains(var.replica_regions, region)])
    error_message = "An instance is in one of replica_regions."
  }
}

variable "database_users" {
  description = "The PostgreSQL users as which each process signs in with IAM: those in the URLs of its settings."
  type        = map(set(string))
  default = {
    command-api      = ["kiseki", "kiseki_audit", "kiseki_anchors"]
    query-api        = ["kiseki", "kiseki_audit", "kiseki_anchors"]
    updater          = ["kiseki", "kiseki_audit", "kiseki_anchors"]
    updater-function = ["kiseki"]
    migrate          = ["kiseki", "kiseki_audit", "kiseki_anchors"]
    backup           = ["kiseki", "kiseki_audit", "kiseki_anchors"]
    operator         = ["kiseki", "kiseki_audit", "kiseki_anchors"]
  }

  validation {
    condition = alltrue([
      for process in keys(var.database_users) :
      contains(["command-api", "query-api", "updater", "updater-function", "migrate", "backup", "operator"], process)
    ])
    error_message = "The processes are command-api, query-api, updater, updater-function, migrate, backup and operator."
  }
}

variable "backup_bucket" {
  description = "The name of the bucket of KISEKI_BACKUP; null for none."
  type        = string
  default     = null
}

variable "key_backup_bucket" {
  description = "The name of the bucket of KISEKI_BACKUP_KEYS, never the same; null for none."
  type        = string
  default     = null

  validation {
    condition     = var.key_backup_bucket == null || var.key_backup_bucket != var.backup_bucket
    error_message = "Copies of keys end within a week, so they are never in the bucket of the other backups."
  }
}

variable "failure_bucket" {
  description = "The name of the bucket that takes the records which the function gave up; null for none."
  type        = string
  default     = null
}

variable "repository_name" {
  description = "The name of the ECR repository of the image; `name` unless set."
  type        = string
  default     = null
}

variable "cluster_name" {
  description = "The name of the ECS cluster; `name` unless set."
  type        = string
  default     = null
}

variable "log_group_prefix" {
  description = "What the names of all log groups begin with; a process writes to this and its own name. `/NAME/` unless set."
  type        = string
  default     = null

  validation {
    condition     = var.log_group_prefix == null || can(regex("^[.A-Za-z0-9_/#-]+/$", coalesce(var.log_group_prefix, "none")))
    error_message = "A prefix of log groups ends with /."
  }
}

variable "function_name" {
  description = "The name of the Lambda function; `NAME-updater` unless set."
  type        = string
  default     = null
}

variable "load_balancer_name" {
  description = "The name of the load balancer; `name` unless set."
  type        = string
  default     = null
}

variable "target_group_prefix" {
  description = "What the names of all target groups begin with; `NAME-` unless set."
  type        = string
  default     = null
}
