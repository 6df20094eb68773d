# One whole system in one region: the only place that knows how the modules hang together. The environments call it with
# their values, and nothing else. Read from the top: names, keys and roles, network, stores, processes, edge, eyes.

locals {
  name      = "${var.project}-${var.environment}"
  partition = startswith(var.region, "cn-") ? "aws-cn" : startswith(var.region, "us-gov-") ? "aws-us-gov" : "aws"
  tags      = { "kiseki:system" = local.name, "kiseki:root" = basename(abspath(path.root)) }

  # One number each, for whoever listens there and for whoever is let in.
  ports = { command = 18080, query = 18082, management = 8558, test = 8443 }

  # Seconds. The processes are told these, and the load balancer and ECS get theirs from the same ones.
  timing = {
    drain_delay           = 30
    requests_done_timeout = 10
    request_timeout       = 10
    keep_alive            = 75
    idle_timeout          = 60
  }
  termination_grace = 120

  recovery_regions = var.recovery_region == null ? [] : [var.recovery_region]
  log_group_prefix = "/${local.name}/"
  function_name    = "${local.name}-updater"
  failure_bucket   = "${local.name}-failures-${var.account_id}"

  # Who is let out to the internet: with keys of tokens there the APIs, with a lease in a third region all that write, and
  # without an endpoint for the streams all that follow the journal.
  internet = setunion(
    var.streams_endpoint ? [] : ["command-api", "query-api", "updater", "migrate", "backup"],
    var.identity.jwks_url == null ? [] : ["command-api", "query-api"],
    var.lease_region == null ? [] : ["command-api", "query-api", "updater", "migrate", "backup"],
  )
}

# A second environment of the same name would take this one's tables, keys and names for its own. Whatever has the tag of
# this system was made from this folder, or nothing is planned.
data "aws_resourcegroupstaggingapi_resources" "same_name" {
  tag_filter {
    key    = "kiseki:system"
    values = [local.name]
  }

  lifecycle {
    postcondition {
      condition = alltrue([
        for one in self.resource_tag_mapping_list : lookup(one.tags, "kiseki:root", local.tags["kiseki:root"]) == local.tags["kiseki:root"]
      ])
      error_message = "The account has a system named ${local.name} already, made from another folder than ${local.tags["kiseki:root"]}. Choose another project or environment; nothing was changed."
    }
  }
}

module "security" {
  source = "../modules/security"

  name                      = local.name
  tags                      = local.tags
  partition                 = local.partition
  account_id                = var.account_id
  region                    = var.region
  replica_regions           = toset(local.recovery_regions)
  lease_region              = var.lease_region
  key_administrators        = var.key_administrators
  operator_principals       = var.operator_principals
  operators_need_mfa        = var.operators_need_mfa
  token_secret              = var.identity.jwks_url == null
  database_resource_id      = module.read_model.resource_id
  database_admin_secret_arn = module.read_model.master_secret_arn
  database_users            = local.database_users
  backup_bucket             = module.backup.bucket_names["backups"]
  key_backup_bucket         = module.backup.bucket_names["private"]
  failure_bucket            = local.failure_bucket
  repository_name           = local.name
  cluster_name              = local.name
  log_group_prefix          = local.log_group_prefix
  function_name             = local.function_name
  load_balancer_name        = local.name
  target_group_prefix       = "${local.name}-"
  multi_region_master_key   = true
}

module "network" {
  source = "../modules/network"

  name       = local.name
  tags       = local.tags
  region     = var.region
  account_id = var.account_id
  cidr       = var.cidr
  zones      = [for letter in var.zones : "${var.region}${letter}"]
  nat        = var.nat

  streams_endpoint = var.streams_endpoint
  log_kms_key_arn  = module.security.data_key_arn
}

module "journal" {
  source = "../modules/journal"

  name                = local.name
  tags                = local.tags
  region              = var.region
  kms_key_arn         = module.security.data_key_arn
  deletion_protection = var.deletion_protection
  maximum_read_units  = var.capacity.reads
  maximum_write_units = var.capacity.writes
  replicas            = { for region in local.recovery_regions : region => module.security.data_key_arns[region] }
  lease_region        = var.lease_region
}

module "read_model" {
  source = "../modules/read-model"

  name                      = local.name
  tags                      = local.tags
  region                    = var.region
  account_id                = var.account_id
  vpc_id                    = module.network.vpc_id
  subnet_ids                = module.network.isolated_subnet_ids
  client_security_group_ids = module.compute.security_group_ids
  kms_key_arn               = module.security.data_key_arn
  log_kms_key_arn           = module.security.data_key_arn
  instance_class            = var.database.class
  multi_az                  = var.database.multi_az
  max_connections           = var.database.max_connections
  storage_gib               = { first = var.database.storage, most = var.database.storage_most }
  backup_days               = var.database.backup_days
  deletion_protection       = var.deletion_protection
  databases                 = local.databases
  certificates_path         = local.certificates
  master_password           = var.database_admin_password
  master_password_version   = var.database_admin_password_version
  replica = var.database_replica == null ? null : {
    region             = var.recovery_region
    kms_key_arn        = module.security.data_key_arns[var.recovery_region]
    log_kms_key_arn    = module.security.data_key_arns[var.recovery_region]
    subnet_ids         = var.database_replica.subnet_ids
    security_group_ids = var.database_replica.security_group_ids
    instance_class     = var.database_replica.class
    multi_az           = var.database_replica.multi_az
  }
}

module "rate_store" {
  source = "../modules/rate-store"

  name                      = local.name
  tags                      = local.tags
  vpc_id                    = module.network.vpc_id
  subnet_ids                = module.network.isolated_subnet_ids
  client_security_group_ids = { for api in ["command-api", "query-api"] : api => module.compute.security_group_ids[api] }
  kms_key_arn               = module.security.data_key_arn
  log_kms_key_arn           = module.security.data_key_arn
  secret_arn                = module.security.secret_arns["rate-store"]
  node_type                 = var.rate_store.node_type
  nodes                     = var.rate_store.nodes
  password                  = var.rate_store_password
  password_version          = var.rate_store_password_version
}

module "backup" {
  source = "../modules/backup"

  name              = local.name
  tags              = local.tags
  region            = var.region
  account_id        = var.account_id
  kms_key_arn       = module.security.data_key_arn
  table_arns        = { for name in ["journal", "claims", "snapshots"] : name => module.journal.table_arns[name] }
  table_kms_key_arn = module.security.data_key_arn
  retention_days    = var.backup.days
  lock              = var.backup.lock == "none" ? null : { mode = var.backup.lock }
  copy = var.recovery_region == null ? null : {
    region      = var.recovery_region
    kms_key_arn = module.security.data_key_arns[var.recovery_region]
  }
  notifications = { topic_arn = module.observability.topic_arn }
}

module "edge" {
  source = "../modules/edge"

  name                = local.name
  tags                = local.tags
  partition           = local.partition
  account_id          = var.account_id
  region              = var.region
  vpc_id              = module.network.vpc_id
  subnet_ids          = module.network.public_subnet_ids
  client_cidrs        = var.client_cidrs
  test_cidrs          = var.test_cidrs
  domain              = var.domain
  zone_id             = var.zone_id
  certificate_arn     = var.certificate_arn
  ports               = local.ports
  timing              = local.timing
  deletion_protection = var.deletion_protection
  kms_key_arn         = module.security.data_key_arn
}

module "compute" {
  source = "../modules/compute"

  name                         = local.name
  tags                         = local.tags
  region                       = var.region
  image                        = var.image
  application                  = var.application
  start_services               = var.start_services
  environment                  = local.environment
  task_role_arns               = module.security.role_arns
  execution_role_arns          = module.security.execution_role_arns
  infrastructure_role_arn      = module.security.infrastructure_role_arn
  scheduler_role_arn           = module.security.scheduler_role_arn
  vpc_id                       = module.network.vpc_id
  subnet_ids                   = module.network.private_subnet_ids
  balancer_security_group_id   = module.edge.security_group_id
  endpoint_security_group_id   = module.network.endpoint_security_group_id
  prefix_list_ids              = module.network.prefix_list_ids
  database_security_group_ids  = { read-model = module.read_model.security_group_id }
  rate_store_security_group_id = module.rate_store.security_group_id
  internet                     = local.internet
  load_balancing               = module.edge.load_balancing
  ports                        = { for name in ["command", "query", "management"] : name => local.ports[name] }
  termination_grace            = local.termination_grace
  sizes                        = var.sizes
  scaling                      = var.scaling
  updater_tasks                = var.updater_tasks
  spot                         = var.spot
  deployment                   = var.deployment
  deployment_alarm_names       = module.observability.deployment_alarm_names
  alarm_topic_arns             = { alarms = module.observability.topic_arn }
  kms_key_arn                  = module.security.data_key_arn
  log_group_prefix             = local.log_group_prefix
  log_retention_days           = var.log_days
}

module "updater" {
  source = "../modules/updater"

  name                 = local.name
  tags                 = local.tags
  function_name        = local.function_name
  artefact_bucket      = "${local.name}-artefacts-${var.account_id}"
  failure_bucket       = local.failure_bucket
  access_log_bucket    = module.backup.access_log_bucket_name
  package              = local.package
  role_arn             = module.security.role_arns["updater-function"]
  environment          = local.settings["updater-function"]
  subnet_ids           = module.network.private_subnet_ids
  security_group_ids   = [module.compute.security_group_ids["updater-function"]]
  kms_key_arn          = module.security.data_key_arn
  stream_arn           = module.journal.stream_arn
  log_group_name       = module.security.log_group_names["updater-function"]
  reserved_concurrency = var.function_concurrency
  log_retention_days   = var.log_days
}

module "observability" {
  source = "../modules/observability"

  name          = local.name
  tags          = local.tags
  partition     = local.partition
  account_id    = var.account_id
  region        = var.region
  namespace     = local.name
  subscriptions = { for address in var.alarm_emails : address => { protocol = "email", endpoint = address } }
  load_balancer = module.edge.arn_suffix
  target_groups = module.edge.target_group_arn_suffixes
  web_acl       = module.edge.web_acl_name
  cluster_name  = local.name
  services = {
    for process, name in module.compute.service_names : process => {
      name    = name
      minimum = process == "updater" ? 1 : var.scaling[process].minimum
    }
  }
  updater_function = var.package == null ? null : {
    name         = module.updater.function_name
    mapping_uuid = module.updater.mapping_uuid
  }
  table_names     = module.journal.table_names
  index_names     = module.journal.index_names
  replica_regions = toset(local.recovery_regions)
  database = {
    instance_id     = module.read_model.instance_id
    max_connections = var.database.max_connections
    storage_gb      = var.database.storage
    replicas        = var.database_replica == null ? {} : { (var.recovery_region) = module.read_model.replica_instance_id }
  }
  rate_store = {
    replication_group_id = module.rate_store.replication_group_id
    nodes                = var.rate_store.nodes
  }
  certificate_arns = { apis = module.edge.certificate_arn }
  backup_vault     = module.backup.vault_name
  thresholds       = { embedded_metrics_seconds = local.metrics_seconds }
  budget           = { amount = var.budget_dollars, emails = tolist(var.alarm_emails) }
}
