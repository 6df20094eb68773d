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
  description = "The region of the network."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2,4}(-[a-z]+)+-[0-9]{1,2}$", var.region))
    error_message = "A region is written like eu-central-1."
  }
}

variable "account_id" {
  description = "The account: endpoints let in nobody else."
  type        = string

  validation {
    condition     = can(regex("^[0-9]{12}$", var.account_id))
    error_message = "An account id has 12 digits."
  }
}

variable "cidr" {
  description = "The addresses of the network: a /16 to /20 that meets no network it is ever to be joined with."
  type        = string

  validation {
    condition = (
      can(cidrhost(var.cidr, 0)) && !strcontains(var.cidr, ":") &&
      try(cidrsubnet(var.cidr, 0, 0) == var.cidr, false) &&
      try(tonumber(split("/", var.cidr)[1]) >= 16 && tonumber(split("/", var.cidr)[1]) <= 20, false)
    )
    error_message = "cidr is an IPv4 network of /16 to /20, written by its first address, such as 10.20.0.0/16."
  }

  validation {
    condition = anytrue([
      can(regex("^10\\.", var.cidr)),
      can(regex("^172\\.(1[6-9]|2[0-9]|3[01])\\.", var.cidr)),
      can(regex("^192\\.168\\.", var.cidr)),
      can(regex("^100\\.(6[4-9]|[7-9][0-9]|1[01][0-9]|12[0-7])\\.", var.cidr)),
    ])
    error_message = "cidr is of private addresses: 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10."
  }
}

variable "zones" {
  description = "The availability zones, three to six of the region. Only ever add at the end: the order gives the addresses."
  type        = list(string)

  validation {
    condition     = length(var.zones) >= 3 && length(var.zones) <= 6 && length(distinct(var.zones)) == length(var.zones)
    error_message = "Three to six different zones: with fewer, the loss of one takes half of everything along."
  }

  validation {
    condition     = alltrue([for zone in var.zones : can(regex("^${var.region}[a-z]$", zone))])
    error_message = "The zones are of the region, written like eu-central-1a."
  }
}

variable "nat" {
  description = "The way out to the internet: none, one for all zones, or one per zone. Needed only where a token issuer outside of AWS is asked for keys (KISEKI_JWKS_URL), or where the lease of two regions is kept in a third one."
  type        = string
  default     = "none"

  validation {
    condition     = contains(["none", "one", "per-zone"], var.nat)
    error_message = "nat is none, one or per-zone."
  }
}

variable "more_interface_endpoints" {
  description = "Interface endpoints besides those that the processes need, by the last part of their service's name, such as xray or aps-workspaces."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for service in var.more_interface_endpoints : can(regex("^[a-z0-9.-]+$", service))])
    error_message = "An endpoint is named like xray: without com.amazonaws and the region."
  }
}

variable "streams_endpoint" {
  description = "Whether the streams of DynamoDB are reached by an endpoint; false for over the internet."
  type        = bool
  default     = true

  validation {
    condition     = var.streams_endpoint || var.nat != "none"
    error_message = "Without the endpoint of the streams there is no way to them: set nat to one or per-zone."
  }
}

variable "log_kms_key_arn" {
  description = "The KMS key of the flow logs; its policy lets CloudWatch Logs use it."
  type        = string
}

variable "log_retention_days" {
  description = "How many days flow logs are kept. They hold addresses, those of clients at the load balancer too, and no content."
  type        = number
  default     = 90

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400], var.log_retention_days)
    error_message = "CloudWatch Logs keeps 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365 or 400 days; more would be no use here."
  }
}
