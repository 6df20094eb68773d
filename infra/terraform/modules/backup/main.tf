# Copies of what can't be built again. Used by the system.
#
# AWS Backup copies journal, claims and snapshots, chosen by name, into a vault that is locked. Everything else is left
# out on purpose: whoever restored old keys, revocations or the ledger of erasures would bring erased people back.
# Besides there are the buckets of `kiseki backup`: one for journal and audit log, one for what ends within a week (keys,
# read models).
#
# The buckets have no object lock. `kiseki backup` removes what it replaces and what is over its age, for good, and would
# rightly fail where it can't.

locals {
  partition = startswith(var.region, "cn-") ? "aws-cn" : startswith(var.region, "us-gov-") ? "aws-us-gov" : "aws"
  arn       = "arn:${local.partition}"

  bucket_names = {
    backups = "${var.name}-backups-${var.account_id}"
    private = "${var.name}-private-backups-${var.account_id}"
  }
  access_log_bucket_name = "${var.name}-backup-access-${var.account_id}"

  table_arns = values(var.table_arns)

  assumed_by_backup = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "backup.amazonaws.com" }
      Action    = "sts:AssumeRole"
      Condition = { StringEquals = { "aws:SourceAccount" = var.account_id } }
    }]
  })

  copies = var.copy == null ? [] : [{
    vault_arn = aws_backup_vault.copy[0].arn
    days      = coalesce(var.copy.retention_days, var.retention_days)
  }]
}

# AWS Backup

resource "aws_backup_vault" "this" {
  name        = var.name
  kms_key_arn = var.kms_key_arn

  tags = merge(var.tags, { Name = var.name })

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_backup_vault_lock_configuration" "this" {
  count = var.lock == null ? 0 : 1

  backup_vault_name   = aws_backup_vault.this.name
  min_retention_days  = var.lock.minimum_days
  max_retention_days  = var.lock.maximum_days
  changeable_for_days = var.lock.mode == "compliance" ? var.lock.grace_days : null
}

resource "aws_backup_vault" "copy" {
  count = var.copy == null ? 0 : 1

  region      = var.copy.region
  name        = "${var.name}-copy"
  kms_key_arn = var.copy.kms_key_arn

  tags = merge(var.tags, { Name = "${var.name}-copy" })

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_backup_vault_lock_configuration" "copy" {
  count = var.copy == null || var.lock == null ? 0 : 1

  region              = var.copy.region
  backup_vault_name   = aws_backup_vault.copy[0].name
  min_retention_days  = var.lock.minimum_days
  max_retention_days  = var.lock.maximum_days
  changeable_for_days = var.lock.mode == "compliance" ? var.lock.grace_days : null
}

resource "aws_backup_vault_notifications" "this" {
  count = var.notifications == null ? 0 : 1

  backup_vault_name = aws_backup_vault.this.name
  sns_topic_arn     = var.notifications.topic_arn
  # Of a backup that failed or never began AWS sends nothing any more (BACKUP_JOB_FAILED, BACKUP_JOB_EXPIRED are taken and
  # never sent): there are alarms on that. RESTORE_JOB_COMPLETED comes of one that failed, too.
  backup_vault_events = ["COPY_JOB_FAILED", "RESTORE_JOB_COMPLETED"]
}

resource "aws_backup_plan" "this" {
  name = "${var.name}-journal"

  rule {
    rule_name         = "daily"
    target_vault_name = aws_backup_vault.this.name
    schedule          = var.schedule
    start_window      = 60
    completion_window = 480

    lifecycle {
      delete_after = var.retention_days
    }

    dynamic "copy_action" {
      for_each = local.copies

      content {
        destination_vault_arn = copy_action.value.vault_arn

        lifecycle {
          delete_after = copy_action.value.days
        }
      }
    }

    recovery_point_tags = var.tags
  }

  tags = merge(var.tags, { Name = "${var.name}-journal" })
}

resource "aws_backup_selection" "this" {
  name         = "journal"
  plan_id      = aws_backup_plan.this.id
  iam_role_arn = aws_iam_role.backup.arn
  resources    = local.table_arns
}

resource "aws_iam_role" "backup" {
  name               = "${var.name}-aws-backup"
  description        = "AWS Backup copies the tables of the journal."
  assume_role_policy = local.assumed_by_backup

  tags = var.tags
}

resource "aws_iam_role_policy" "backup" {
  name = "backup"
  role = aws_iam_role.backup.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "Tables"
        Effect   = "Allow"
        Action   = ["dynamodb:DescribeTable", "dynamodb:CreateBackup", "dynamodb:StartAwsBackupJob", "dynamodb:ListTagsOfResource"]
        Resource = local.table_arns
      },
      {
        Sid      = "Backups"
        Effect   = "Allow"
        Action   = ["dynamodb:DescribeBackup", "dynamodb:DeleteBackup"]
        Resource = [for arn in local.table_arns : "${arn}/backup/*"]
      },
      {
        Sid      = "Vaults"
        Effect   = "Allow"
        Action   = ["backup:DescribeBackupVault", "backup:CopyIntoBackupVault"]
        Resource = concat([aws_backup_vault.this.arn], aws_backup_vault.copy[*].arn)
      },
      {
        Sid      = "RecoveryPoints"
        Effect   = "Allow"
        Action   = ["backup:CopyFromBackupVault", "backup:TagResource"]
        Resource = "${local.arn}:backup:*:${var.account_id}:recovery-point:*"
      },
      {
        Sid      = "Keys"
        Effect   = "Allow"
        Action   = ["kms:Decrypt", "kms:DescribeKey", "kms:GenerateDataKey"]
        Resource = distinct(concat([var.kms_key_arn, var.table_kms_key_arn], var.copy[*].kms_key_arn))
      },
      {
        Sid       = "Grants"
        Effect    = "Allow"
        Action    = "kms:CreateGrant"
        Resource  = distinct(concat([var.kms_key_arn, var.table_kms_key_arn], var.copy[*].kms_key_arn))
        Condition = { Bool = { "kms:GrantIsForAWSResource" = "true" } }
      },
      {
        # It names no resource.
        Sid      = "Tags"
        Effect   = "Allow"
        Action   = "tag:GetResources"
        Resource = "*"
      },
    ]
  })
}

resource "aws_iam_role" "restore" {
  name               = "${var.name}-aws-restore"
  description        = "AWS Backup restores tables beside those of the service; an operator names this role."
  assume_role_policy = local.assumed_by_backup

  tags = var.tags
}

# It can make tables `<name>-r…`, as a restore by `kiseki backup` does, and read and write only those: what is live can't
# be touched with it.
resource "aws_iam_role_policy" "restore" {
  name = "restore"
  role = aws_iam_role.restore.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid    = "NewTables"
        Effect = "Allow"
        Action = [
          "dynamodb:BatchWriteItem", "dynamodb:DeleteItem", "dynamodb:DescribeTable", "dynamodb:GetItem", "dynamodb:PutItem",
          "dynamodb:Query", "dynamodb:RestoreTableFromAwsBackup", "dynamodb:RestoreTableFromBackup", "dynamodb:Scan",
          "dynamodb:TagResource", "dynamodb:UpdateItem",
        ]
        Resource = "${local.arn}:dynamodb:${var.region}:${var.account_id}:table/${var.name}-r*-*"
      },
      {
        Sid      = "Backups"
        Effect   = "Allow"
        Action   = ["dynamodb:DescribeBackup", "dynamodb:RestoreTableFromBackup"]
        Resource = [for arn in local.table_arns : "${arn}/backup/*"]
      },
      {
        Sid      = "Keys"
        Effect   = "Allow"
        Action   = ["kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey", "kms:ReEncryptFrom", "kms:ReEncryptTo"]
        Resource = distinct([var.kms_key_arn, var.table_kms_key_arn])
      },
      {
        Sid       = "Grants"
        Effect    = "Allow"
        Action    = "kms:CreateGrant"
        Resource  = distinct([var.kms_key_arn, var.table_kms_key_arn])
        Condition = { Bool = { "kms:GrantIsForAWSResource" = "true" } }
      },
    ]
  })
}

# The buckets of `kiseki backup`

resource "aws_s3_bucket" "this" {
  #checkov:skip=CKV_AWS_144: what has to survive the region is copied by AWS Backup (`copy`); a manifest is worth nothing without the tables it names
  #checkov:skip=CKV2_AWS_61: each has one, below; checkov does not follow `this["backups"]`
  #checkov:skip=CKV2_AWS_62: nobody waits for these objects
  #checkov:skip=CKV_AWS_21: journal and audit log have versions, see below; what is erased must not stay as a version of keys or read models
  for_each = local.bucket_names

  bucket = each.value

  tags = merge(var.tags, { Name = each.value })

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_s3_bucket_ownership_controls" "this" {
  for_each = aws_s3_bucket.this

  bucket = each.value.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_public_access_block" "this" {
  for_each = aws_s3_bucket.this

  bucket                  = each.value.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_server_side_encryption_configuration" "this" {
  for_each = aws_s3_bucket.this

  bucket = each.value.id

  rule {
    bucket_key_enabled = true

    apply_server_side_encryption_by_default {
      sse_algorithm     = "aws:kms"
      kms_master_key_id = var.kms_key_arn
    }
  }
}

resource "aws_s3_bucket_versioning" "backups" {
  bucket = aws_s3_bucket.this["backups"].id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "backups" {
  bucket = aws_s3_bucket.this["backups"].id

  # `kiseki backup prune` removes backups by their age, but never the last one that was proved. Here only that goes which
  # somebody deleted or wrote over by other means, after the time in which it may be missed.
  rule {
    id     = "versions-that-were-replaced"
    status = "Enabled"

    filter {}

    noncurrent_version_expiration {
      noncurrent_days = var.backup_days
    }

    expiration {
      expired_object_delete_marker = true
    }

    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }
  }

  depends_on = [aws_s3_bucket_versioning.backups]
}

resource "aws_s3_bucket_lifecycle_configuration" "private" {
  bucket = aws_s3_bucket.this["private"].id

  # The promise to erased people does not depend on a command that somebody has to run.
  rule {
    id     = "within-a-week"
    status = "Enabled"

    filter {}

    expiration {
      days = var.private_days
    }

    abort_incomplete_multipart_upload {
      days_after_initiation = 1
    }
  }
}

resource "aws_s3_bucket_policy" "this" {
  for_each = aws_s3_bucket.this

  bucket = each.value.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "OnlyTls"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:*"
        Resource  = [each.value.arn, "${each.value.arn}/*"]
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      },
      {
        Sid       = "OnlyTls12OrLater"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:*"
        Resource  = [each.value.arn, "${each.value.arn}/*"]
        Condition = { NumericLessThan = { "s3:TlsVersion" = "1.2" } }
      },
      {
        Sid       = "OnlyThisAccount"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:*"
        Resource  = [each.value.arn, "${each.value.arn}/*"]
        Condition = {
          StringNotEquals = { "aws:PrincipalAccount" = var.account_id }
          Bool            = { "aws:PrincipalIsAWSService" = "false" }
        }
      },
      {
        # Who names no key gets the bucket's.
        Sid       = "OnlyThisKey"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:PutObject"
        Resource  = "${each.value.arn}/*"
        Condition = {
          Null            = { "s3:x-amz-server-side-encryption-aws-kms-key-id" = "false" }
          StringNotEquals = { "s3:x-amz-server-side-encryption-aws-kms-key-id" = var.kms_key_arn }
        }
      },
    ]
  })

  depends_on = [aws_s3_bucket_public_access_block.this]
}

resource "aws_s3_bucket_logging" "this" {
  for_each = aws_s3_bucket.this

  bucket        = each.value.id
  target_bucket = aws_s3_bucket.access_logs.id
  target_prefix = "${each.key}/"

  depends_on = [aws_s3_bucket_policy.access_logs]
}

resource "aws_s3_bucket" "access_logs" {
  #checkov:skip=CKV_AWS_18: the log of a log would log itself
  #checkov:skip=CKV_AWS_21: S3 writes each log once
  #checkov:skip=CKV_AWS_144: who read a backup is asked in the region where it is
  #checkov:skip=CKV_AWS_145: S3 delivers access logs to buckets with its own keys
  #checkov:skip=CKV2_AWS_62: nobody waits for these objects
  bucket = local.access_log_bucket_name

  tags = merge(var.tags, { Name = local.access_log_bucket_name })

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_s3_bucket_ownership_controls" "access_logs" {
  bucket = aws_s3_bucket.access_logs.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_public_access_block" "access_logs" {
  bucket                  = aws_s3_bucket.access_logs.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_server_side_encryption_configuration" "access_logs" {
  bucket = aws_s3_bucket.access_logs.id

  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "access_logs" {
  bucket = aws_s3_bucket.access_logs.id

  rule {
    id     = "old-logs"
    status = "Enabled"

    filter {}

    expiration {
      days = var.access_log_days
    }

    abort_incomplete_multipart_upload {
      days_after_initiation = 1
    }
  }
}

resource "aws_s3_bucket_policy" "access_logs" {
  bucket = aws_s3_bucket.access_logs.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "OnlyTls"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:*"
        Resource  = [aws_s3_bucket.access_logs.arn, "${aws_s3_bucket.access_logs.arn}/*"]
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      },
      {
        Sid       = "S3Writes"
        Effect    = "Allow"
        Principal = { Service = "logging.s3.amazonaws.com" }
        Action    = "s3:PutObject"
        # Also of the other buckets of this service, each under a prefix of its own.
        Resource = "${aws_s3_bucket.access_logs.arn}/*"
        Condition = {
          StringEquals = { "aws:SourceAccount" = var.account_id }
          ArnLike      = { "aws:SourceArn" = "${local.arn}:s3:::${var.name}-*" }
        }
      },
    ]
  })

  depends_on = [aws_s3_bucket_public_access_block.access_logs]
}
