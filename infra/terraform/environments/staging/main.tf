# Staging: what differs from the other environments is here, and nothing but that.

module "system" {
  source = "../../system"

  environment                 = "staging"
  account_id                  = var.account_id
  region                      = var.region
  cidr                        = "10.30.0.0/16"
  nat                         = var.nat
  streams_endpoint            = var.streams_endpoint
  domain                      = var.domain
  zone_id                     = var.zone_id
  certificate_arn             = var.certificate_arn
  client_cidrs                = var.client_cidrs
  test_cidrs                  = var.test_cidrs
  cors_origins                = var.cors_origins
  identity                    = var.identity
  image                       = var.image
  application                 = var.application
  start_services              = var.start_services
  package                     = var.package
  rate_store_password         = var.rate_store_password
  rate_store_password_version = var.rate_store_password_version
  audit_anchors               = var.audit_anchors
  operator_principals         = var.operator_principals
  operators_need_mfa          = var.operators_need_mfa
  key_administrators          = var.key_administrators
  alarm_emails                = var.alarm_emails
  budget_dollars              = var.budget_dollars

  sizes = {
    command-api = { cpu = 512, memory = 1024 }
    query-api   = { cpu = 512, memory = 1024 }
    updater     = { cpu = 512, memory = 1024 }
    migrate     = { cpu = 512, memory = 1024 }
    backup      = { cpu = 512, memory = 2048, storage = 30 }
  }

  # The shape of production, smaller: two of each, a standby, a release that bakes.
  scaling = {
    command-api = { minimum = 2, maximum = 4 }
    query-api   = { minimum = 2, maximum = 4 }
  }
  updater_tasks = 2
  deployment    = { strategy = "CANARY", bake_minutes = 5 }

  database             = { class = "db.t4g.medium", multi_az = true, storage = 20, storage_most = 100 }
  function_concurrency = 10
  rate_store           = { node_type = "cache.t4g.micro", nodes = 2 }
  capacity             = { reads = 4000, writes = 2000 }
  backup               = { days = 7, lock = "governance" }
  log_days             = 90
}
