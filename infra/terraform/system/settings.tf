# What every process is told: the settings of kiseki by their environment variables, made of names and addresses that other
# modules give. The application reads them from here and from nowhere else; `kiseki check --deploy` finds nothing in them.

locals {
  metrics_seconds = 60

  # Where the image has the authorities of RDS.
  certificates = "/etc/kiseki/rds-global-bundle.pem"

  package = var.package == null ? null : {
    bucket  = "${local.name}-artefacts-${var.account_id}"
    key     = var.package.key
    version = var.package.version
  }

  # Each database has a role that owns it: whoever reads queries can't change the audit log.
  databases = merge(
    { kiseki = "kiseki", audit = "kiseki_audit" },
    var.audit_anchors == null ? { anchors = "kiseki_anchors" } : {},
  )
  database_users = merge(
    { for process in local.audited : process => toset(values(local.databases)) },
    { updater-function = toset([local.databases["kiseki"]]) },
  )
  audited = ["command-api", "query-api", "updater", "migrate", "backup", "operator"]

  stores = {
    KISEKI_PROFILE        = "production"
    KISEKI_JOURNAL        = "dynamodb://${module.journal.prefix}?region=${var.region}"
    KISEKI_KEYS           = "dynamodb://${module.journal.prefix}?region=${var.region}"
    KISEKI_READ_MODEL     = module.read_model.urls["kiseki"]
    KISEKI_MASTER_KEY     = module.security.master_key_url
    KISEKI_ERASURE_LEDGER = "dynamodb://${module.journal.prefix}?region=${var.region}"
  }

  sites = var.recovery_region == null ? {} : {
    KISEKI_SITE             = var.region
    KISEKI_PRIMARY_REGION   = var.region
    KISEKI_SECONDARY_REGION = var.recovery_region
    KISEKI_LEASE            = "dynamodb://${module.journal.prefix}?region=${var.lease_region}"
  }

  audit = {
    KISEKI_AUDIT_SINKS    = "stdout,database"
    KISEKI_AUDIT_DATABASE = module.read_model.urls["audit"]
    KISEKI_AUDIT_ANCHORS  = var.audit_anchors == null ? module.read_model.urls["anchors"] : var.audit_anchors
    KISEKI_AUDIT_KEY      = module.security.secret_urls["audit"]
  }

  metrics = {
    KISEKI_EMBEDDED_METRICS  = tostring(local.metrics_seconds)
    KISEKI_METRICS_NAMESPACE = local.name
  }

  apis = merge(
    {
      KISEKI_HOST                  = "0.0.0.0"
      KISEKI_MANAGEMENT_HOST       = "0.0.0.0"
      KISEKI_TLS_PROXY             = "true"
      KISEKI_TRUSTED_PROXIES       = join(",", module.network.public_subnet_cidrs)
      KISEKI_TOKEN_ISSUER          = var.identity.issuer
      KISEKI_TOKEN_AUDIENCE        = var.identity.audience
      KISEKI_RATE_STORE            = module.security.secret_urls["rate-store"]
      KISEKI_DRAIN_DELAY           = tostring(local.timing.drain_delay)
      KISEKI_REQUESTS_DONE_TIMEOUT = tostring(local.timing.requests_done_timeout)
      KISEKI_REQUEST_TIMEOUT       = tostring(local.timing.request_timeout)
      KISEKI_KEEP_ALIVE            = tostring(local.timing.keep_alive)
    },
    var.identity.jwks_url == null
    ? { KISEKI_TOKEN_SECRET = module.security.secret_urls["token"] }
    : { KISEKI_JWKS_URL = var.identity.jwks_url },
    length(var.cors_origins) == 0 ? {} : { KISEKI_CORS_ORIGINS = join(",", var.cors_origins) },
  )

  backups = {
    KISEKI_BACKUP      = module.backup.backup_url
    KISEKI_BACKUP_KEYS = module.backup.backup_keys_url
  }

  settings = {
    command-api = merge(local.stores, local.sites, local.audit, local.metrics, local.apis, {
      KISEKI_HOSTS = module.edge.hosts["command-api"]
    })
    query-api = merge(local.stores, local.sites, local.audit, local.metrics, local.apis, {
      KISEKI_HOSTS = module.edge.hosts["query-api"]
    })
    updater = merge(local.stores, local.sites, local.audit, local.metrics, {
      KISEKI_HOST            = "0.0.0.0"
      KISEKI_MANAGEMENT_HOST = "0.0.0.0"
      # The Lambda is the fast way where there is one; this one makes builds, sweeps, and applies what the other missed.
      KISEKI_STREAM_POLL = var.package == null ? "0.25" : "30"
    })
    migrate = merge(local.stores, local.sites, local.audit)
    backup  = merge(local.stores, local.sites, local.audit, local.backups, { KISEKI_METRICS_NAMESPACE = local.name })
    updater-function = merge(local.stores, var.application == null ? {} : { KISEKI_APP = var.application }, {
      # The function's files are those of its package.
      KISEKI_READ_MODEL        = replace(module.read_model.urls["kiseki"], local.certificates, "/var/task/rds-global-bundle.pem")
      KISEKI_METRICS_NAMESPACE = local.name
    })
  }
  environment = { for process in ["command-api", "query-api", "updater", "migrate", "backup"] : process => local.settings[process] }
}
