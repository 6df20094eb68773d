variable "name" {
  description = "What the names of everything here begin with; target groups have at most 32 characters, ten of them their own."
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
  description = "The account that everything is in; part of the name of the log bucket, which has to be unique in the world."
  type        = string

  validation {
    condition     = can(regex("^[0-9]{12}$", var.account_id))
    error_message = "The id of an account has 12 digits."
  }
}

variable "region" {
  description = "The region that the service runs in."
  type        = string
}

variable "vpc_id" {
  description = "The network of the tasks."
  type        = string
}

variable "subnet_ids" {
  description = "The public subnets, one in each zone."
  type        = list(string)

  validation {
    condition     = length(var.subnet_ids) >= 2
    error_message = "A load balancer needs subnets in at least two zones."
  }
}

variable "client_cidrs" {
  description = "The addresses that may reach the APIs: everybody's unless set."
  type        = set(string)
  default     = ["0.0.0.0/0"]

  validation {
    condition     = alltrue([for cidr in var.client_cidrs : can(cidrhost(cidr, 0)) && !strcontains(cidr, ":")])
    error_message = "Addresses are IPv4 networks such as 203.0.113.0/24."
  }
}

variable "test_cidrs" {
  description = "The addresses that may reach the test listener, which shows what is not released yet: pipelines, operators, NAT addresses of a function that tests. Nobody unless set."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.test_cidrs : can(cidrhost(cidr, 0)) && !strcontains(cidr, ":")])
    error_message = "Addresses are IPv4 networks such as 203.0.113.7/32."
  }

  validation {
    condition     = !contains(var.test_cidrs, "0.0.0.0/0")
    error_message = "The test listener is not for everybody: what it shows is not released."
  }
}

variable "domain" {
  description = "The domain of the APIs, which are commands.DOMAIN and queries.DOMAIN."
  type        = string

  validation {
    condition     = can(regex("^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\\.)+[a-z]{2,63}$", var.domain))
    error_message = "A domain is written in lower case, without a dot at its end: shop.example.com."
  }
}

variable "zone_id" {
  description = "The public Route 53 zone of the domain, for the certificate's proof and both names; null where DNS is kept elsewhere, and then certificate_arn has to be set."
  type        = string
  default     = null
}

variable "certificate_arn" {
  description = "A certificate of ACM in this region for both names; one is made, and proved in the zone, unless set."
  type        = string
  default     = null

  validation {
    condition     = var.certificate_arn == null || can(regex("^arn:aws[a-z-]*:acm:[a-z0-9-]+:[0-9]{12}:certificate/", coalesce(var.certificate_arn, "none")))
    error_message = "A certificate is named by its ARN in ACM."
  }

  validation {
    condition     = var.certificate_arn != null || var.zone_id != null
    error_message = "Set zone_id, so that a certificate can be made and proved, or certificate_arn to one that there is."
  }
}

variable "ports" {
  description = "Where the processes listen (KISEKI_COMMAND_PORT, KISEKI_QUERY_PORT, KISEKI_MANAGEMENT_PORT), and the test listener."
  type = object({
    command    = optional(number, 18080)
    query      = optional(number, 18082)
    management = optional(number, 8558)
    test       = optional(number, 8443)
  })
  default = {}

  validation {
    condition     = alltrue([for port in values(var.ports) : port > 1023 && port < 65536]) && length(distinct(values(var.ports))) == 4
    error_message = "Ports are four different numbers from 1024 to 65535: the processes are not root."
  }
}

variable "timing" {
  description = "Seconds, as the processes are told (KISEKI_DRAIN_DELAY, KISEKI_REQUESTS_DONE_TIMEOUT, KISEKI_KEEP_ALIVE, KISEKI_REQUEST_TIMEOUT), and the load balancer's idle time-out, which has to fit."
  type = object({
    drain_delay           = optional(number, 30)
    requests_done_timeout = optional(number, 10)
    request_timeout       = optional(number, 10)
    keep_alive            = optional(number, 75)
    idle_timeout          = optional(number, 60)
  })
  default = {}

  validation {
    condition     = var.timing.idle_timeout < var.timing.keep_alive
    error_message = "The side that sends has to close first: idle_timeout has to be less than keep_alive, or requests meet a closed connection."
  }

  validation {
    condition     = var.timing.idle_timeout > var.timing.request_timeout
    error_message = "idle_timeout has to be more than request_timeout, or the load balancer gives up requests that would have been answered."
  }

  validation {
    condition     = var.timing.drain_delay >= var.timing.requests_done_timeout
    error_message = "The deregistration delay is the drain_delay, and has to be at least requests_done_timeout, or requests are cut."
  }
}

variable "health_check" {
  description = "How often the load balancer looks at a task (seconds), and after how many bad or good answers it believes them. Interval times failures has to be less than the drain delay."
  type = object({
    interval  = optional(number, 5)
    timeout   = optional(number, 4)
    failures  = optional(number, 2)
    successes = optional(number, 2)
  })
  default = {}

  validation {
    condition     = var.health_check.timeout < var.health_check.interval
    error_message = "The time-out of a health check has to be less than its interval."
  }

  validation {
    condition     = var.health_check.interval * var.health_check.failures < var.timing.drain_delay
    error_message = "Interval times failures has to be less than timing.drain_delay: the load balancer has to notice that a task leaves before its port closes."
  }
}

variable "tls_policy" {
  description = "Which TLS is spoken. The default is TLS 1.3 alone, as the processes have it themselves (tls_minimum); a policy of TLS 1.2 and 1.3 is for clients that cannot be renewed. PQ ones also offer a key exchange that a quantum computer does not break."
  type        = string
  default     = "ELBSecurityPolicy-TLS13-1-3-2021-06"

  validation {
    condition = contains([
      "ELBSecurityPolicy-TLS13-1-3-2021-06",
      "ELBSecurityPolicy-TLS13-1-3-PQ-2025-09",
      "ELBSecurityPolicy-TLS13-1-3-FIPS-2023-04",
      "ELBSecurityPolicy-TLS13-1-2-Res-2021-06",
      "ELBSecurityPolicy-TLS13-1-2-Res-PQ-2025-09",
    ], var.tls_policy)
    error_message = "Only policies of TLS 1.3, or of 1.2 and 1.3 with forward secrecy and authenticated encryption alone, are allowed."
  }
}

variable "deletion_protection" {
  description = "Whether the load balancer can be deleted only after this was switched off."
  type        = bool
  default     = true
}

variable "access_log_days" {
  description = "Days that the load balancer's logs are kept. They hold addresses of people and the URLs of queries by GET."
  type        = number
  default     = 90

  validation {
    condition     = var.access_log_days >= 1 && floor(var.access_log_days) == var.access_log_days
    error_message = "Logs are kept for whole days, at least one."
  }
}

variable "kms_key_arn" {
  description = "The KMS key of the WAF's log group."
  type        = string
}

variable "log_retention_days" {
  description = "Days that the WAF's log of what it blocked or counted is kept: one of the numbers that CloudWatch Logs knows."
  type        = number
  default     = 365

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653], var.log_retention_days)
    error_message = "CloudWatch Logs does not know this number of days; 365 is usual."
  }
}

variable "waf" {
  description = "The web ACL. `requests_per_minute` of one address are let through: more than the application's own limit (KISEKI_RATE_LIMIT_ADDRESS, 300), which answers properly; this one is for floods. `count_only` counts floods, bad addresses and what the common rules find, and blocks none of it, to see what that would do to real traffic; known attacks are blocked all the same. `counted_rules` are further rules of AWSManagedRulesCommonRuleSet that only count."
  type = object({
    requests_per_minute = optional(number, 600)
    count_only          = optional(bool, false)
    counted_rules       = optional(set(string), [])
  })
  default = {}

  validation {
    condition     = var.waf.requests_per_minute >= 10 && var.waf.requests_per_minute <= 2000000000
    error_message = "A rate-based rule of AWS WAF takes 10 to 2,000,000,000 requests."
  }
}
