# Two keys. `data` encrypts what lies on disks of AWS, and only AWS's services use it, in the name of whoever is allowed.
# `master` wraps the keys of people and is used by the processes themselves: without it nothing that is sealed can be
# read, wherever a copy of it is.
#
# Who administers a key can't use it. IAM says which roles may use a key; each key's policy says which roles IAM may let.

locals {
  administration = {
    Sid    = "Administration"
    Effect = "Allow"
    Action = [
      "kms:CancelKeyDeletion", "kms:CreateAlias", "kms:DeleteAlias", "kms:DescribeKey", "kms:DisableKey",
      "kms:EnableKey", "kms:EnableKeyRotation", "kms:GetKeyPolicy", "kms:GetKeyRotationStatus", "kms:ListAliases",
      "kms:ListGrants", "kms:ListKeyPolicies", "kms:ListKeyRotations", "kms:ListResourceTags", "kms:PutKeyPolicy",
      "kms:ReplicateKey", "kms:RevokeGrant", "kms:RotateKeyOnDemand", "kms:ScheduleKeyDeletion", "kms:TagResource",
      "kms:UntagResource", "kms:UpdateAlias", "kms:UpdateKeyDescription", "kms:UpdatePrimaryRegion",
    ]
    Principal = { AWS = local.account }
    Resource  = "*"
    Condition = merge(
      { StringEquals = { "kms:CallerAccount" = [var.account_id] } },
      length(var.key_administrators) == 0 ? {} : { ArnLike = { "aws:PrincipalArn" = var.key_administrators } },
    )
  }

  data_services = ["backup", "dynamodb", "ecr", "elasticache", "lambda", "rds", "s3", "scheduler", "secretsmanager", "sns"]
  sns_senders   = ["budgets", "cloudwatch", "events", "events.rds"]

  data_key_policies = {
    for region in local.regions : region => {
      Version = "2012-10-17"
      Statement = [
        local.administration,
        {
          Sid       = "UseThroughServices"
          Effect    = "Allow"
          Action    = ["kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey", "kms:GenerateDataKeyWithoutPlaintext", "kms:ReEncryptFrom", "kms:ReEncryptTo", "kms:RetireGrant"]
          Principal = { AWS = local.account }
          Resource  = "*"
          Condition = {
            StringEquals = {
              "kms:CallerAccount" = [var.account_id]
              "kms:ViaService"    = [for service in local.data_services : "${service}.${region}.${local.suffix}"]
            }
          }
        },
        {
          Sid       = "GrantsOfServices"
          Effect    = "Allow"
          Action    = ["kms:CreateGrant"]
          Principal = { AWS = local.account }
          Resource  = "*"
          Condition = {
            Bool = { "kms:GrantIsForAWSResource" = ["true"] }
            StringEquals = {
              "kms:CallerAccount" = [var.account_id]
              "kms:ViaService"    = [for service in local.data_services : "${service}.${region}.${local.suffix}"]
            }
          }
        },
        # AWS Backup asks with the roles themselves, and not always in the name of a service.
        {
          Sid       = "Backups"
          Effect    = "Allow"
          Action    = ["kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey", "kms:ReEncryptFrom", "kms:ReEncryptTo"]
          Principal = { AWS = local.account }
          Resource  = "*"
          Condition = { ArnEquals = { "aws:PrincipalArn" = local.backup_roles } }
        },
        {
          Sid       = "GrantsOfBackups"
          Effect    = "Allow"
          Action    = ["kms:CreateGrant"]
          Principal = { AWS = local.account }
          Resource  = "*"
          Condition = {
            ArnEquals = { "aws:PrincipalArn" = local.backup_roles }
            Bool      = { "kms:GrantIsForAWSResource" = ["true"] }
          }
        },
        {
          Sid       = "Logs"
          Effect    = "Allow"
          Action    = ["kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey", "kms:GenerateDataKeyWithoutPlaintext", "kms:ReEncryptFrom", "kms:ReEncryptTo"]
          Principal = { Service = "logs.${region}.amazonaws.com" }
          Resource  = "*"
          Condition = {
            ArnLike = { "kms:EncryptionContext:aws:logs:arn" = ["${local.arn}:logs:${region}:${var.account_id}:log-group:*"] }
          }
        },
        {
          Sid       = "Notifications"
          Effect    = "Allow"
          Action    = ["kms:Decrypt", "kms:GenerateDataKey"]
          Principal = { Service = [for sender in local.sns_senders : "${sender}.amazonaws.com"] }
          Resource  = "*"
          Condition = { StringEquals = { "aws:SourceAccount" = [var.account_id] } }
        },
        {
          Sid       = "DisksOfTasks"
          Effect    = "Allow"
          Action    = ["kms:GenerateDataKeyWithoutPlaintext"]
          Principal = { Service = "fargate.amazonaws.com" }
          Resource  = "*"
          Condition = { StringEquals = local.of_the_cluster }
        },
        {
          Sid       = "GrantsOfTasks"
          Effect    = "Allow"
          Action    = ["kms:CreateGrant"]
          Principal = { Service = "fargate.amazonaws.com" }
          Resource  = "*"
          Condition = {
            StringEquals                = local.of_the_cluster
            "ForAllValues:StringEquals" = { "kms:GrantOperations" = ["Decrypt"] }
          }
        },
      ]
    }
  }

  # Those of the module backup.
  backup_roles = [for role in ["aws-backup", "aws-restore"] : "${local.arn}:iam::${var.account_id}:role/${var.name}-${role}"]

  of_the_cluster = {
    "kms:EncryptionContext:aws:ecs:clusterAccount" = [var.account_id]
    "kms:EncryptionContext:aws:ecs:clusterName"    = [local.cluster_name]
  }

  # Names, not the roles themselves: a role that was made anew under its name would not be known to the key any more.
  master_key_policy = {
    Version = "2012-10-17"
    Statement = [
      local.administration,
      {
        Sid       = "Wrapping"
        Effect    = "Allow"
        Action    = ["kms:Decrypt", "kms:Encrypt"]
        Principal = { AWS = local.account }
        Resource  = "*"
        Condition = {
          ArnEquals                   = { "aws:PrincipalArn" = [for process in local.wrapping : "${local.arn}:iam::${var.account_id}:role/${local.role_names[process]}"] }
          Null                        = { "kms:EncryptionContextKeys" = "false" }
          "ForAllValues:StringEquals" = { "kms:EncryptionContextKeys" = ["kiseki-context"] }
        }
      },
      # With it KMS tells the copies in other regions of a new rotation or description.
      {
        Sid       = "Copies"
        Effect    = "Allow"
        Action    = ["kms:SynchronizeMultiRegionKey"]
        Principal = { AWS = local.account }
        Resource  = "*"
        Condition = {
          ArnEquals = { "aws:PrincipalArn" = ["${local.arn}:iam::${var.account_id}:role/aws-service-role/mrk.kms.amazonaws.com/AWSServiceRoleForKeyManagementServiceMultiRegionKeys"] }
        }
      },
    ]
  }

  # All that open sealed data. Who makes backups copies wrapped keys and can't open them.
  wrapping = ["command-api", "migrate", "operator", "query-api", "updater", "updater-function"]

  data_keys = merge({ (var.region) = aws_kms_key.data.arn }, { for region, key in aws_kms_key.data_replica : region => key.arn })
  master_keys = merge(
    { (var.region) = aws_kms_key.master.arn },
    { for region, key in aws_kms_replica_key.master : region => key.arn },
  )
  master_key_urls = { for region in local.regions : region => "aws-kms://${aws_kms_alias.master.name}?region=${region}" }
}

resource "aws_kms_key" "data" {
  description             = "${var.name}: what is at rest"
  enable_key_rotation     = true
  rotation_period_in_days = 365
  deletion_window_in_days = 30
  policy                  = jsonencode(local.data_key_policies[var.region])

  tags = merge(var.tags, { Name = "${var.name}-data" })

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_kms_alias" "data" {
  name          = "alias/${var.name}-data"
  target_key_id = aws_kms_key.data.key_id
}

# A key of its own in each region: no region's data depends on another one's key.
resource "aws_kms_key" "data_replica" {
  for_each = var.replica_regions

  region                  = each.key
  description             = "${var.name}: what is at rest"
  enable_key_rotation     = true
  rotation_period_in_days = 365
  deletion_window_in_days = 30
  policy                  = jsonencode(local.data_key_policies[each.key])

  tags = merge(var.tags, { Name = "${var.name}-data" })

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_kms_alias" "data_replica" {
  for_each = var.replica_regions

  region        = each.key
  name          = "alias/${var.name}-data"
  target_key_id = aws_kms_key.data_replica[each.key].key_id
}

resource "aws_kms_key" "master" {
  description             = "${var.name}: wraps the keys of people; to delete it is to erase everybody"
  multi_region            = var.multi_region_master_key
  enable_key_rotation     = true
  rotation_period_in_days = 365
  deletion_window_in_days = 30
  policy                  = jsonencode(local.master_key_policy)

  tags = merge(var.tags, { Name = "${var.name}-master" })

  lifecycle {
    prevent_destroy = true

    precondition {
      condition     = var.multi_region_master_key || length(var.replica_regions) == 0
      error_message = "The master key has to be a multi-Region key for another region to read what it wrapped (multi_region_master_key)."
    }
  }
}

resource "aws_kms_alias" "master" {
  name          = "alias/${var.name}-master"
  target_key_id = aws_kms_key.master.key_id
}

# The same key: what one region wrapped the other one reads.
resource "aws_kms_replica_key" "master" {
  for_each = var.replica_regions

  region                  = each.key
  description             = aws_kms_key.master.description
  primary_key_arn         = aws_kms_key.master.arn
  deletion_window_in_days = 30
  policy                  = jsonencode(local.master_key_policy)

  tags = merge(var.tags, { Name = "${var.name}-master" })

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_kms_alias" "master_replica" {
  for_each = var.replica_regions

  region        = each.key
  name          = aws_kms_alias.master.name
  target_key_id = aws_kms_replica_key.master[each.key].key_id
}
