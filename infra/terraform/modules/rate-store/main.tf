# The store that all processes with an API count their rate limits in: Valkey on ElastiCache. Used by the system.
#
# It holds counts under keyed hashes, nothing that could be lost or that names anybody, so it has no backups. When it is
# away, each process allows what its own share is.
#
# The processes log in with a password, since the client of Redis knows no IAM. It goes through write-only arguments to
# ElastiCache and, within the URL, to the secret: neither a plan nor the state has it.

locals {
  port = 6379
  user = "kiseki"

  family = "valkey${split(".", var.engine_version)[0]}"

  # The provider wants a write-only argument beside its version in every plan, and sends it only with a new version. So
  # where no password was given this stands for it. ElastiCache takes none with spaces, quotes, `/` or `@`: a new version
  # without a password is an error of the user, before anything gets into the secret.
  password = var.password == null ? "no, \"no/password\" was given @ all" : var.password
}

resource "aws_security_group" "this" {
  name        = "${var.name}-rate-store"
  description = "The store of rate limits: Valkey from the processes with an API."
  vpc_id      = var.vpc_id

  tags = merge(var.tags, { Name = "${var.name}-rate-store" })

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_ingress_rule" "clients" {
  for_each = var.client_security_group_ids

  security_group_id            = aws_security_group.this.id
  description                  = each.key
  ip_protocol                  = "tcp"
  from_port                    = local.port
  to_port                      = local.port
  referenced_security_group_id = each.value

  tags = merge(var.tags, { Name = "${var.name}-rate-store-${each.key}" })
}

resource "aws_elasticache_subnet_group" "this" {
  name        = "${var.name}-rate-store"
  description = "Isolated subnets"
  subnet_ids  = var.subnet_ids

  tags = var.tags
}

resource "aws_elasticache_parameter_group" "this" {
  name        = "${var.name}-rate-store-${local.family}"
  description = "No eviction: an evicted key is a limit set back."
  family      = local.family

  parameter {
    name  = "maxmemory-policy"
    value = "noeviction"
  }

  tags = var.tags

  lifecycle {
    create_before_destroy = true
  }
}

# Only what the script of a limit does, and only on its keys. There is no user `default`: who gives no name and password
# gets in nowhere.
resource "aws_elasticache_user" "processes" {
  user_id       = "${var.name}-rates"
  user_name     = local.user
  engine        = "valkey"
  access_string = "on ~kiseki:limit:1:* resetchannels -@all +eval +evalsha +get +set +time +ping +client|setinfo"

  passwords_wo         = local.password
  passwords_wo_version = var.password_version

  tags = var.tags
}

resource "aws_elasticache_user_group" "this" {
  user_group_id = "${var.name}-rates"
  engine        = "valkey"
  user_ids      = [aws_elasticache_user.processes.user_id]

  tags = var.tags
}

resource "aws_cloudwatch_log_group" "this" {
  #checkov:skip=CKV_AWS_338: what a store of rate limits logged is of no use after a year; how long is a setting
  for_each = toset(["engine", "slow"])

  name              = "/${var.name}/rate-store-${each.key}"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.log_kms_key_arn

  tags = merge(var.tags, { Name = "${var.name}-rate-store-${each.key}" })
}

resource "aws_elasticache_replication_group" "this" {
  #checkov:skip=CKV2_AWS_50: with two nodes or more it is on; one alone is for environments that may pause
  #checkov:skip=CKV_AWS_31: the users of the user group have passwords; a token beside them can't be had
  #checkov:skip=CKV_AWS_134: counts of the last hour: a copy of them would set limits back
  replication_group_id = "${var.name}-rates"
  description          = "Rate limits of ${var.name}"

  engine               = "valkey"
  engine_version       = var.engine_version
  node_type            = var.node_type
  port                 = local.port
  parameter_group_name = aws_elasticache_parameter_group.this.name

  # One shard: the client asks one server, and a script has one key.
  cluster_mode               = "disabled"
  num_cache_clusters         = var.nodes
  automatic_failover_enabled = var.nodes > 1
  multi_az_enabled           = var.nodes > 1

  subnet_group_name  = aws_elasticache_subnet_group.this.name
  security_group_ids = [aws_security_group.this.id]

  transit_encryption_enabled = true
  transit_encryption_mode    = "required"
  at_rest_encryption_enabled = true
  kms_key_id                 = var.kms_key_arn
  user_group_ids             = [aws_elasticache_user_group.this.user_group_id]

  snapshot_retention_limit   = 0
  auto_minor_version_upgrade = true
  maintenance_window         = var.maintenance_window
  apply_immediately          = true

  dynamic "log_delivery_configuration" {
    for_each = aws_cloudwatch_log_group.this

    content {
      log_type         = "${log_delivery_configuration.key}-log"
      log_format       = "json"
      destination_type = "cloudwatch-logs"
      destination      = log_delivery_configuration.value.name
    }
  }

  tags = merge(var.tags, { Name = "${var.name}-rates" })

  # AWS may have renewed it to a later minor version, and back goes only a new one: raise engine_version then.
  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_secretsmanager_secret_version" "url" {
  secret_id = var.secret_arn

  secret_string_wo = jsonencode({
    value = "rediss://${local.user}:${local.password}@${aws_elasticache_replication_group.this.primary_endpoint_address}:${local.port}/0"
  })
  secret_string_wo_version = var.password_version

  # What ElastiCache refused is not written here.
  depends_on = [aws_elasticache_user.processes]
}
