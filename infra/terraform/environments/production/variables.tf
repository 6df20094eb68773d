variable "account_id" {
  description = "The account of this environment; with credentials of another one nothing is planned."
  type        = string
}

variable "region" {
  description = "The region that the service runs in."
  type        = string
}

variable "domain" {
  description = "The domain of the APIs, which are commands.DOMAIN and queries.DOMAIN."
  type        = string
}

variable "zone_id" {
  description = "The public Route 53 zone of the domain; null where DNS is kept elsewhere, and then certificate_arn has to be set."
  type        = string
  default     = null
}

variable "certificate_arn" {
  description = "The ARN of a certificate of ACM, in the region, for both names; one is made unless set."
  type        = string
  default     = null
}

variable "identity" {
  description = "Who issues tokens: `iss`, `aud`, and where its public keys are (https); without jwks_url tokens are of HS256."
  type = object({
    issuer   = string
    audience = string
    jwks_url = optional(string)
  })
}

variable "nat" {
  description = "The way out to the internet: none, one or per-zone; identity.jwks_url needs one."
  type        = string
  default     = "none"
}

variable "streams_endpoint" {
  description = "Whether the streams of DynamoDB are reached by an endpoint in the network; false, with nat, where that does not answer."
  type        = bool
  default     = true
}

variable "cors_origins" {
  description = "Origins whose pages may call the APIs."
  type        = list(string)
  default     = []
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

variable "alarm_emails" {
  description = "Who is told of alarms and of the budget; each has to confirm a mail of AWS."
  type        = set(string)
}

variable "budget_dollars" {
  description = "What a month may cost (US dollars) before people are told."
  type        = number
  default     = 2000
}

variable "operator_principals" {
  description = "ARNs of the roles and users that may run one-off tasks such as a restore."
  type        = list(string)
  default     = []
}

variable "operators_need_mfa" {
  description = "Whether operators have to have signed in with a second factor; false with single sign-on, which does not tell AWS."
  type        = bool
  default     = true
}

variable "key_administrators" {
  description = "ARNs of principals that may administer the KMS keys, whoever applies this among them; whoever IAM allows it unless set."
  type        = list(string)
  default     = []
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
  description = "Whether there are services: false until the database was prepared and `kiseki migrate` has run."
  type        = bool
  default     = true
}

variable "package" {
  description = "The first package of the Lambda updater in the artefact bucket; null for none."
  type = object({
    key     = string
    version = optional(string)
  })
  default = null
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
  description = "Where heads of the audit log are kept: postgresql://… of a database that another account owns, as `docs/security.md` advises."
  type        = string
  default     = null
}

variable "recovery_region" {
  description = "Another region with replicas of tables, keys and secrets and a copy of each backup; null for none."
  type        = string
  default     = null
}

variable "lease_region" {
  description = "The third region, where the lease is that says who writes; null with one region."
  type        = string
  default     = null
}

variable "database_replica" {
  description = "A read replica of the database in recovery_region, in a network that is there; null for none."
  type = object({
    subnet_ids         = list(string)
    security_group_ids = list(string)
    class              = optional(string)
    multi_az           = optional(bool, false)
  })
  default = null
}

variable "database_admin_password" {
  description = "The password of the database's administrator, only when database_replica is set or the password changed: `openssl rand -hex 32`."
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

variable "backup_lock" {
  description = "The lock of the backup vault. governance: who has the rights can take it away. compliance: after three days nobody can, not even AWS."
  type        = string
  default     = "governance"
}
