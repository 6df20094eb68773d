# Development: what differs from the other environments is here, and nothing but that.

module "system" {
  source = "../../system"

  environment                 = "development"
  account_id                  = var.account_id
  region                      = var.region
  cidr                        = "10.20.0.0/16"
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
    command-api = { cpu = 256, memory = 1024 }
    query-api   = { cpu = 256, memory = 1024 }
    updater     = { cpu = 256, memory = 1024 }
    migrate     = { cpu = 256, memory = 1024 }
    backup      = { cpu = 512, memory = 2048, storage = 30 }
  }

  # One task of each, on spare capacity: it may be gone for a minute.
  scaling = {
    command-api = { minimum = 1, maximum = 2 }
    query-api   = { minimum = 1, maximum = 2 }
  }
  updater_tasks = 1
  spot          = ["command-api", "query-api", "updater"]
  deployment    = { strategy = "BLUE_GREEN", bake_minutes = 0 }

  database             = { class = "db.t4g.small", multi_az = false, storage = 20, storage_most = 50, backup_days = 1 }
  function_concurrency = 4
  rate_store           = { node_type = "cache.t4g.micro", nodes = 1 }
  capacity             = { reads = 1000, writes = 500 }
  backup               = { days = 7, lock = "none" }
  log_days             = 30
}
