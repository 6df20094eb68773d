# The PostgreSQL database that queries read, with the databases of the audit log beside it. Used by the system; a second
# one (`purpose`) keeps the heads of the audit log where whoever changes the log can't reach.
#
# Nobody knows a password: processes log in with IAM, and the master user's is made and rotated by RDS. But RDS makes no
# replica of a server whose password it keeps, so with one the password is given, and lies in a secret of ours.
#
# Read models hold personal data in plain text, so every copy of the database ends within seven days: that is the longest
# that RDS keeps its own, they go with the instance, and there is no last snapshot, which would stay for ever.

locals {
  partition  = startswith(var.region, "cn-") ? "aws-cn" : startswith(var.region, "us-gov-") ? "aws-us-gov" : "aws"
  identifier = "${var.name}-${var.purpose}"
  port       = 5432

  # The provider wants a write-only argument beside its version in every plan, and sends it only with a new version. Where
  # no password was given this stands for it, which RDS refuses: it takes none with spaces, quotes, `/` or `@`.
  master_password = var.master_password == null ? "no, \"no/password\" was given @ all" : var.master_password
  own_secret      = var.replica != null

  family    = "postgres${var.engine_version}"
  log_kinds = toset(["postgresql", "upgrade"])

  # What the server writes down of a statement are its text, which is a constant of the code, and its time: never a value.
  parameters = merge(
    {
      "ssl_min_protocol_version"          = { value = "TLSv1.2", restart = false }
      "log_connections"                   = { value = "1", restart = false }
      "log_disconnections"                = { value = "1", restart = false }
      "log_lock_waits"                    = { value = "1", restart = false }
      "log_statement"                     = { value = "ddl", restart = false }
      "log_min_duration_statement"        = { value = "1000", restart = false }
      "log_parameter_max_length"          = { value = "0", restart = false }
      "log_parameter_max_length_on_error" = { value = "0", restart = false }
      "log_error_verbosity"               = { value = "terse", restart = false }
    },
    var.max_connections == null ? {} : { "max_connections" = { value = tostring(var.max_connections), restart = true } },
  )
}

resource "aws_security_group" "this" {
  name        = local.identifier
  description = "PostgreSQL from the processes."
  vpc_id      = var.vpc_id

  tags = merge(var.tags, { Name = local.identifier })

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

  tags = merge(var.tags, { Name = "${local.identifier}-${each.key}" })
}

resource "aws_db_subnet_group" "this" {
  name        = local.identifier
  description = "Isolated subnets"
  subnet_ids  = var.subnet_ids

  tags = merge(var.tags, { Name = local.identifier })
}

resource "aws_db_parameter_group" "this" {
  name        = "${local.identifier}-${local.family}"
  description = "TLS for all, logs without values"
  family      = local.family

  parameter {
    name  = "rds.force_ssl"
    value = "1"
  }

  dynamic "parameter" {
    for_each = local.parameters

    content {
      name         = parameter.key
      value        = parameter.value.value
      apply_method = parameter.value.restart ? "pending-reboot" : "immediate"
    }
  }

  tags = merge(var.tags, { Name = local.identifier })

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_cloudwatch_log_group" "this" {
  #checkov:skip=CKV_AWS_338: the server's log is for finding faults, the audit log is elsewhere; how long is a setting
  for_each = local.log_kinds

  # The name is RDS's.
  name              = "/aws/rds/instance/${local.identifier}/${each.key}"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.log_kms_key_arn

  tags = merge(var.tags, { Name = "${local.identifier}-${each.key}" })
}

resource "aws_iam_role" "monitoring" {
  name        = "${local.identifier}-monitoring"
  description = "Lets RDS write the measurements of the database's machine."

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "monitoring.rds.amazonaws.com" }
      Action    = "sts:AssumeRole"
      Condition = {
        StringEquals = { "aws:SourceAccount" = var.account_id }
        ArnLike      = { "aws:SourceArn" = "arn:${local.partition}:rds:*:${var.account_id}:db:${local.identifier}*" }
      }
    }]
  })

  tags = var.tags
}

resource "aws_iam_role_policy_attachment" "monitoring" {
  role       = aws_iam_role.monitoring.name
  policy_arn = "arn:${local.partition}:iam::aws:policy/service-role/AmazonRDSEnhancedMonitoringRole"
}

resource "aws_db_instance" "this" {
  identifier     = local.identifier
  engine         = "postgres"
  engine_version = var.engine_version
  instance_class = var.instance_class
  multi_az       = var.multi_az

  storage_type          = "gp3"
  allocated_storage     = var.storage_gib.first
  max_allocated_storage = var.storage_gib.most
  storage_encrypted     = true
  kms_key_id            = var.kms_key_arn

  port                                = local.port
  username                            = "kiseki_master"
  manage_master_user_password         = local.own_secret ? null : true
  master_user_secret_kms_key_id       = local.own_secret ? null : var.kms_key_arn
  password_wo                         = local.own_secret ? local.master_password : null
  password_wo_version                 = local.own_secret ? var.master_password_version : null
  iam_database_authentication_enabled = true
  ca_cert_identifier                  = var.ca_certificate

  db_subnet_group_name   = aws_db_subnet_group.this.name
  vpc_security_group_ids = [aws_security_group.this.id]
  publicly_accessible    = false
  network_type           = "IPV4"

  parameter_group_name        = aws_db_parameter_group.this.name
  auto_minor_version_upgrade  = true
  allow_major_version_upgrade = var.allow_major_version_upgrade
  apply_immediately           = false
  maintenance_window          = var.maintenance_window

  backup_retention_period  = var.backup_days
  backup_window            = var.backup_window
  delete_automated_backups = true
  copy_tags_to_snapshot    = true
  skip_final_snapshot      = true
  deletion_protection      = var.deletion_protection

  monitoring_interval                   = 60
  monitoring_role_arn                   = aws_iam_role.monitoring.arn
  database_insights_mode                = "standard"
  performance_insights_enabled          = true
  performance_insights_kms_key_id       = var.kms_key_arn
  performance_insights_retention_period = 7
  enabled_cloudwatch_logs_exports       = local.log_kinds

  tags = merge(var.tags, { Name = local.identifier })

  depends_on = [aws_cloudwatch_log_group.this, aws_iam_role_policy_attachment.monitoring]

  lifecycle {
    prevent_destroy = true

    precondition {
      condition     = length(local.identifier) <= 63
      error_message = "The identifier ${local.identifier} is longer than the 63 characters that RDS takes; choose a shorter name."
    }
  }
}

resource "aws_secretsmanager_secret" "master" {
  #checkov:skip=CKV2_AWS_57: only people use it, and change it with master_password_version; RDS rotates where there is no replica
  count = local.own_secret ? 1 : 0

  name                    = "${var.name}/${var.purpose}-master"
  description             = "The master user of the database ${local.identifier}, for `kiseki database prepare`"
  kms_key_id              = var.kms_key_arn
  recovery_window_in_days = 30

  tags = merge(var.tags, { Name = "${var.name}/${var.purpose}-master" })
}

resource "aws_secretsmanager_secret_version" "master" {
  count = local.own_secret ? 1 : 0

  secret_id                = aws_secretsmanager_secret.master[0].id
  secret_string_wo         = jsonencode({ username = aws_db_instance.this.username, password = local.master_password })
  secret_string_wo_version = var.master_password_version
}

locals {
  master_secret_arn = local.own_secret ? one(aws_secretsmanager_secret.master[*].arn) : one(aws_db_instance.this.master_user_secret[*].secret_arn)
}

resource "aws_db_subnet_group" "replica" {
  count = var.replica == null ? 0 : 1

  region      = var.replica.region
  name        = "${local.identifier}-replica"
  description = "Isolated subnets"
  subnet_ids  = var.replica.subnet_ids

  tags = merge(var.tags, { Name = "${local.identifier}-replica" })
}

resource "aws_db_parameter_group" "replica" {
  count = var.replica == null ? 0 : 1

  region      = var.replica.region
  name        = "${local.identifier}-replica-${local.family}"
  description = "TLS for all, logs without values"
  family      = local.family

  parameter {
    name  = "rds.force_ssl"
    value = "1"
  }

  dynamic "parameter" {
    for_each = local.parameters

    content {
      name         = parameter.key
      value        = parameter.value.value
      apply_method = parameter.value.restart ? "pending-reboot" : "immediate"
    }
  }

  tags = merge(var.tags, { Name = "${local.identifier}-replica" })

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_cloudwatch_log_group" "replica" {
  #checkov:skip=CKV_AWS_338: as above
  for_each = var.replica == null ? toset([]) : local.log_kinds

  region            = var.replica.region
  name              = "/aws/rds/instance/${local.identifier}-replica/${each.key}"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.replica.log_kms_key_arn

  tags = merge(var.tags, { Name = "${local.identifier}-replica-${each.key}" })
}

resource "aws_db_instance" "replica" {
  count = var.replica == null ? 0 : 1

  region              = var.replica.region
  identifier          = "${local.identifier}-replica"
  replicate_source_db = aws_db_instance.this.arn
  instance_class      = coalesce(var.replica.instance_class, var.instance_class)
  multi_az            = var.replica.multi_az

  storage_type          = "gp3"
  max_allocated_storage = var.storage_gib.most
  storage_encrypted     = true
  kms_key_id            = var.replica.kms_key_arn

  port                                = local.port
  iam_database_authentication_enabled = true
  ca_cert_identifier                  = var.ca_certificate

  db_subnet_group_name   = aws_db_subnet_group.replica[0].name
  vpc_security_group_ids = var.replica.security_group_ids
  publicly_accessible    = false
  network_type           = "IPV4"

  parameter_group_name       = aws_db_parameter_group.replica[0].name
  auto_minor_version_upgrade = true
  apply_immediately          = false
  maintenance_window         = var.maintenance_window

  backup_retention_period  = var.backup_days
  backup_window            = var.backup_window
  delete_automated_backups = true
  copy_tags_to_snapshot    = true
  skip_final_snapshot      = true
  deletion_protection      = var.deletion_protection

  monitoring_interval                   = 60
  monitoring_role_arn                   = aws_iam_role.monitoring.arn
  database_insights_mode                = "standard"
  performance_insights_enabled          = true
  performance_insights_kms_key_id       = var.replica.kms_key_arn
  performance_insights_retention_period = 7
  enabled_cloudwatch_logs_exports       = local.log_kinds

  tags = merge(var.tags, { Name = "${local.identifier}-replica" })

  depends_on = [aws_cloudwatch_log_group.replica, aws_iam_role_policy_attachment.monitoring]

  lifecycle {
    prevent_destroy = true

    # A failover promotes it, and then it replicates nothing: Terraform must not make it anew because of that.
    ignore_changes = [replicate_source_db]
  }
}
