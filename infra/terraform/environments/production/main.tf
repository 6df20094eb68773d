# Production: what differs from the other environments is here, and nothing but that.

module "system" {
  source = "../../system"

  environment                 = "production"
  account_id                  = var.account_id
  region                      = var.region
  cidr                        = "10.40.0.0/16"
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
  recovery_region             = var.recovery_region
  lease_region                = var.lease_region
  database_replica            = var.database_replica
  database_admin_password     = var.database_admin_password

  database_admin_password_version = var.database_admin_password_version

  sizes = {
    command-api = { cpu = 1024, memory = 2048 }
    query-api   = { cpu = 1024, memory = 2048 }
    updater     = { cpu = 1024, memory = 2048 }
    migrate     = { cpu = 512, memory = 1024 }
    backup      = { cpu = 1024, memory = 4096, storage = 100 }
  }

  scaling = {
    command-api = { minimum = 3, maximum = 20 }
    query-api   = { minimum = 3, maximum = 20 }
  }
  updater_tasks = 2
  deployment    = { strategy = "CANARY", bake_minutes = 10 }

  # `kiseki scale plan` says why 1500: the pools of all tasks, twice while a release is deployed, of the Lambda, and people.
  database   = { class = "db.r8g.large", multi_az = true, storage = 50, storage_most = 500, max_connections = 1500 }
  rate_store = { node_type = "cache.t4g.small", nodes = 2 }
  capacity   = { reads = 10000, writes = 5000 }
  backup     = { days = 30, lock = var.backup_lock }
  log_days   = 365
}
