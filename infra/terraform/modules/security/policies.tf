# What each process may do: `statements` is one map, process to statements. Whatever stands here, the application was seen
# to need, or the test of the roles says why it stands here all the same.

locals {
  table_names = toset(["journal", "claims", "snapshots", "keys", "revocations", "operations", "erasures"])

  # A restore makes tables NAME-r<when>-… and puts them in force in place of those of the infrastructure. That roles know
  # them before is what makes a restore end without a change of roles.
  table_prefixes = { for table in local.table_names : table => contains(["operations", "erasures"], table) ? [var.name] : [var.name, local.restored] }
  restored       = "${var.name}-r????????T??????Z-??????"
  proved         = "${var.name}-verify-????????T??????Z-??????"

  # The roles are those of all regions, and AWS limits how long a policy may be. The names are ours in each of them.
  place = length(var.replica_regions) == 0 ? var.region : "*"

  all    = "${local.arn}:dynamodb:${local.place}:${var.account_id}:table"
  tables = { for table in local.table_names : table => [for prefix in local.table_prefixes[table] : "${local.all}/${prefix}-${table}"] }
  # The tables of the infrastructure alone.
  first           = { for table in local.table_names : table => ["${local.all}/${var.name}-${table}"] }
  streams         = [for table in local.tables.journal : "${table}/stream/*"]
  by_slice        = [for table in local.tables.journal : "${table}/index/by-slice"]
  proving_tables  = ["${local.all}/${local.proved}-*"]
  restored_tables = ["${local.all}/${local.restored}-*"]
  leases          = var.lease_region == null ? [] : ["${local.arn}:dynamodb:${var.lease_region}:${var.account_id}:table/${var.name}-leases"]

  backed_up_tables   = concat(local.tables.journal, local.tables.claims, local.tables.keys, local.tables.revocations)
  described_tables   = concat(local.backed_up_tables, local.tables.snapshots)
  backups_of_tables  = [for table in local.backed_up_tables : "${table}/backup/*"]
  backup_buckets     = [for bucket in compact([var.backup_bucket, var.key_backup_bucket]) : "${local.arn}:s3:::${bucket}"]
  objects_of_backups = [for bucket in local.backup_buckets : "${bucket}/*"]
  failure_buckets    = [for bucket in compact([var.failure_bucket]) : "${local.arn}:s3:::${bucket}"]
  objects_of_failure = [for bucket in local.failure_buckets : "${bucket}/*"]

  log_arns = {
    for process, group in local.log_groups :
    process => ["${local.arn}:logs:${local.place}:${var.account_id}:log-group:${group}:*"]
  }
  repositories = ["${local.arn}:ecr:${local.place}:${var.account_id}:repository/${local.repository_name}"]

  databases = merge(
    var.database_resource_id == null ? {} : { (var.region) = var.database_resource_id },
    var.replica_database_resource_ids,
  )
  database_users = {
    for process in local.processes : process => flatten([
      for region, id in local.databases : [
        for user in lookup(var.database_users, process, []) : "${local.arn}:rds-db:${region}:${var.account_id}:dbuser:${id}/${user}"
      ]
    ])
  }

  # Pieces that several processes need.

  may_ask_what_is_in_force = {
    Sid       = "TablesInForce"
    Effect    = "Allow"
    Action    = ["dynamodb:GetItem"]
    Resource  = local.tables.operations
    Condition = { "ForAllValues:StringEquals" = { "dynamodb:LeadingKeys" = ["journal", "keys"] } }
  }
  may_follow = {
    Sid      = "FollowTheJournal"
    Effect   = "Allow"
    Action   = ["dynamodb:DescribeStream", "dynamodb:GetRecords", "dynamodb:GetShardIterator"]
    Resource = local.streams
  }
  may_describe = {
    Sid      = "DescribeTables"
    Effect   = "Allow"
    Action   = ["dynamodb:DescribeTable"]
    Resource = concat(local.tables.journal, local.tables.claims, local.tables.snapshots)
  }
  may_describe_expiry = {
    Sid      = "DescribeExpiry"
    Effect   = "Allow"
    Action   = ["dynamodb:DescribeTimeToLive"]
    Resource = local.tables.claims
  }
  # Readiness proves that the journal takes writes, on a key that is no stream's; the journal knows its key store by a
  # claim that whoever opens both compares by writing it again.
  may_prove_writes = {
    Sid       = "ProveWrites"
    Effect    = "Allow"
    Action    = ["dynamodb:PutItem"]
    Resource  = local.tables.claims
    Condition = { "ForAllValues:StringEquals" = { "dynamodb:LeadingKeys" = ["mark#writable"] } }
  }
  may_bind = {
    Sid       = "BindKeyStore"
    Effect    = "Allow"
    Action    = ["dynamodb:PutItem"]
    Resource  = local.tables.claims
    Condition = { "ForAllValues:StringLike" = { "dynamodb:LeadingKeys" = ["claim#$key-store#*"] } }
  }
  may_wrap = {
    Sid      = "MasterKey"
    Effect   = "Allow"
    Action   = ["kms:Decrypt", "kms:Encrypt"]
    Resource = [for region in local.regions : local.master_keys[region]]
    Condition = {
      Null                        = { "kms:EncryptionContextKeys" = "false" }
      "ForAllValues:StringEquals" = { "kms:EncryptionContextKeys" = ["kiseki-context"] }
    }
  }
  may_decrypt_for = {
    for user, services in { stores = ["dynamodb"], stores-and-secrets = ["dynamodb", "secretsmanager"], everything = ["dynamodb", "s3", "secretsmanager"] } :
    user => {
      Sid      = "DataKey"
      Effect   = "Allow"
      Action   = ["kms:Decrypt"]
      Resource = [for region in local.regions : local.data_keys[region]]
      Condition = {
        StringEquals = { "kms:ViaService" = flatten([for region in local.regions : [for service in services : "${service}.${region}.${local.suffix}"]]) }
      }
    }
  }
  may_encrypt_objects = {
    Sid       = "DataKeyOfObjects"
    Effect    = "Allow"
    Action    = ["kms:GenerateDataKey"]
    Resource  = [for region in local.regions : local.data_keys[region]]
    Condition = { StringEquals = { "kms:ViaService" = [for region in local.regions : "s3.${region}.${local.suffix}"] } }
  }
  may_encrypt_tables = {
    Sid       = "DataKeyOfTables"
    Effect    = "Allow"
    Action    = ["kms:CreateGrant", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey", "kms:ReEncryptFrom", "kms:ReEncryptTo"]
    Resource  = [for region in local.regions : local.data_keys[region]]
    Condition = { StringEquals = { "kms:ViaService" = [for region in local.regions : "dynamodb.${region}.${local.suffix}"] } }
  }
  may_read_secrets = {
    for users, secrets in { apis = keys(local.secrets), others = ["audit"], operators = setsubtract(keys(local.secrets), ["rate-store"]) } :
    users => {
      Sid      = "Secrets"
      Effect   = "Allow"
      Action   = ["secretsmanager:GetSecretValue"]
      Resource = [for secret in sort(tolist(secrets)) : local.secret_arns[secret]]
    }
  }
  may_connect = {
    for process, users in local.database_users : process => [
      for some in [users] : {
        Sid      = "Databases"
        Effect   = "Allow"
        Action   = ["rds-db:connect"]
        Resource = some
      } if length(some) > 0
    ]
  }
  may_hold_the_lease = [
    for some in [local.leases] : {
      Sid      = "Lease"
      Effect   = "Allow"
      Action   = ["dynamodb:GetItem", "dynamodb:PutItem"]
      Resource = some
    } if length(some) > 0
  ]
  # Restores and their proofs: AWS writes the items of a restored table with the rights of who restores.
  filling = [
    "dynamodb:BatchGetItem", "dynamodb:BatchWriteItem", "dynamodb:DeleteItem", "dynamodb:DeleteTable",
    "dynamodb:DescribeContinuousBackups", "dynamodb:DescribeTable", "dynamodb:GetItem", "dynamodb:PutItem",
    "dynamodb:Query", "dynamodb:Scan", "dynamodb:UpdateItem", "dynamodb:UpdateTable",
  ]
  may_read_backups = [
    for some in [local.backup_buckets] : {
      Sid      = "ListBackups"
      Effect   = "Allow"
      Action   = ["s3:ListBucket", "s3:ListBucketVersions"]
      Resource = some
    } if length(some) > 0
  ]

  statements = {
    command-api = concat(
      [
        local.may_ask_what_is_in_force,
        local.may_describe,
        local.may_describe_expiry,
        local.may_follow,
        {
          Sid      = "Journal"
          Effect   = "Allow"
          Action   = ["dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:Query", "dynamodb:Scan"]
          Resource = local.tables.journal
        },
        {
          Sid      = "Claims"
          Effect   = "Allow"
          Action   = ["dynamodb:DeleteItem", "dynamodb:GetItem", "dynamodb:PutItem"]
          Resource = local.tables.claims
        },
        {
          Sid      = "Snapshots"
          Effect   = "Allow"
          Action   = ["dynamodb:DeleteItem", "dynamodb:PutItem", "dynamodb:Query"]
          Resource = local.tables.snapshots
        },
        {
          Sid      = "KeysOfPeople"
          Effect   = "Allow"
          Action   = ["dynamodb:BatchGetItem", "dynamodb:PutItem", "dynamodb:Query"]
          Resource = local.tables.keys
        },
        {
          Sid      = "Revocations"
          Effect   = "Allow"
          Action   = ["dynamodb:Scan"]
          Resource = local.tables.revocations
        },
        {
          Sid      = "Erasures"
          Effect   = "Allow"
          Action   = ["dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:Query"]
          Resource = local.tables.erasures
        },
        local.may_wrap,
        local.may_decrypt_for["stores-and-secrets"],
        local.may_read_secrets["apis"],
      ],
      local.may_hold_the_lease,
      local.may_connect["command-api"],
    )

    query-api = concat(
      [
        local.may_ask_what_is_in_force,
        local.may_describe,
        local.may_describe_expiry,
        local.may_follow,
        {
          Sid      = "Journal"
          Effect   = "Allow"
          Action   = ["dynamodb:Query", "dynamodb:Scan"]
          Resource = local.tables.journal
        },
        {
          Sid      = "Claims"
          Effect   = "Allow"
          Action   = ["dynamodb:GetItem"]
          Resource = local.tables.claims
        },
        local.may_bind,
        # Who hears of an erasure carries it out, if the process that decided it has not yet: reading the key again has to
        # find that it is gone.
        {
          Sid      = "KeysOfPeople"
          Effect   = "Allow"
          Action   = ["dynamodb:BatchGetItem", "dynamodb:PutItem", "dynamodb:Query"]
          Resource = local.tables.keys
        },
        {
          Sid      = "Revocations"
          Effect   = "Allow"
          Action   = ["dynamodb:Scan"]
          Resource = local.tables.revocations
        },
        {
          Sid      = "Erasures"
          Effect   = "Allow"
          Action   = ["dynamodb:GetItem", "dynamodb:Query"]
          Resource = local.tables.erasures
        },
        # How far it saw erasures in force. It adds no line: those have other keys.
        {
          Sid       = "ErasuresInForce"
          Effect    = "Allow"
          Action    = ["dynamodb:PutItem"]
          Resource  = local.tables.erasures
          Condition = { "ForAllValues:StringEquals" = { "dynamodb:LeadingKeys" = ["mark"] } }
        },
        local.may_prove_writes,
        {
          Sid       = "ProveCommits"
          Effect    = "Allow"
          Action    = ["dynamodb:PutItem"]
          Resource  = local.tables.journal
          Condition = local.may_prove_writes.Condition
        },
        local.may_wrap,
        local.may_decrypt_for["stores-and-secrets"],
        local.may_read_secrets["apis"],
      ],
      local.may_connect["query-api"],
    )

    updater = concat(
      [
        local.may_ask_what_is_in_force,
        local.may_describe,
        local.may_describe_expiry,
        local.may_follow,
        # Also writes: it ends erasures that a process began and did not live to end.
        {
          Sid      = "Journal"
          Effect   = "Allow"
          Action   = ["dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:Query", "dynamodb:Scan"]
          Resource = local.tables.journal
        },
        {
          Sid      = "Sweep"
          Effect   = "Allow"
          Action   = ["dynamodb:Query"]
          Resource = local.by_slice
        },
        {
          Sid      = "Claims"
          Effect   = "Allow"
          Action   = ["dynamodb:DeleteItem", "dynamodb:GetItem"]
          Resource = local.tables.claims
        },
        local.may_bind,
        local.may_prove_writes,
        {
          Sid      = "Snapshots"
          Effect   = "Allow"
          Action   = ["dynamodb:DeleteItem", "dynamodb:Query"]
          Resource = local.tables.snapshots
        },
        {
          Sid      = "KeysOfPeople"
          Effect   = "Allow"
          Action   = ["dynamodb:BatchGetItem", "dynamodb:PutItem", "dynamodb:Query"]
          Resource = local.tables.keys
        },
        {
          Sid      = "Erasures"
          Effect   = "Allow"
          Action   = ["dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:Query"]
          Resource = local.tables.erasures
        },
        local.may_wrap,
        local.may_decrypt_for["stores-and-secrets"],
        local.may_read_secrets["others"],
      ],
      local.may_hold_the_lease,
      local.may_connect["updater"],
    )

    # Lambda reads the stream and writes the log with the function's own role.
    updater-function = concat(
      [
        local.may_ask_what_is_in_force,
        {
          Sid      = "DescribeTables"
          Effect   = "Allow"
          Action   = ["dynamodb:DescribeTable"]
          Resource = local.tables.journal
        },
        local.may_follow,
        {
          Sid      = "ListStreams"
          Effect   = "Allow"
          Action   = ["dynamodb:ListStreams"]
          Resource = local.streams
        },
        {
          Sid      = "Journal"
          Effect   = "Allow"
          Action   = ["dynamodb:Query", "dynamodb:Scan"]
          Resource = local.tables.journal
        },
        {
          Sid      = "Claims"
          Effect   = "Allow"
          Action   = ["dynamodb:GetItem"]
          Resource = local.tables.claims
        },
        local.may_bind,
        {
          Sid      = "KeysOfPeople"
          Effect   = "Allow"
          Action   = ["dynamodb:BatchGetItem", "dynamodb:PutItem", "dynamodb:Query"]
          Resource = local.tables.keys
        },
        {
          Sid      = "Erasures"
          Effect   = "Allow"
          Action   = ["dynamodb:PutItem", "dynamodb:Query"]
          Resource = local.tables.erasures
        },
        local.may_wrap,
        local.may_decrypt_for["stores"],
        {
          Sid      = "Log"
          Effect   = "Allow"
          Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
          Resource = local.log_arns["updater-function"]
        },
        {
          Sid    = "NetworkInterfaces"
          Effect = "Allow"
          Action = [
            "ec2:AssignPrivateIpAddresses", "ec2:CreateNetworkInterface", "ec2:DeleteNetworkInterface",
            "ec2:DescribeNetworkInterfaces", "ec2:DescribeSubnets", "ec2:UnassignPrivateIpAddresses",
          ]
          Resource = ["*"]
        },
        # Lambda makes these calls; the code of the function has no business with them.
        {
          Sid      = "NotByItsCode"
          Effect   = "Deny"
          Action   = ["ec2:*"]
          Resource = ["*"]
          Condition = {
            ArnEquals = { "lambda:SourceFunctionArn" = ["${local.arn}:lambda:${local.place}:${var.account_id}:function:${local.function_name}"] }
          }
        },
      ],
      [
        for some in [local.failure_buckets] : {
          Sid      = "FailureBucket"
          Effect   = "Allow"
          Action   = ["s3:ListBucket"]
          Resource = some
        } if length(some) > 0
      ],
      [
        for some in [local.objects_of_failure] : {
          Sid      = "Failures"
          Effect   = "Allow"
          Action   = ["s3:PutObject"]
          Resource = some
        } if length(some) > 0
      ],
      [for some in [local.failure_buckets] : local.may_encrypt_objects if length(some) > 0],
      local.may_connect["updater-function"],
    )

    # The tables are the infrastructure's; of those it may add what a release needs besides.
    migrate = concat(
      [
        local.may_ask_what_is_in_force,
        {
          Sid      = "DescribeTables"
          Effect   = "Allow"
          Action   = ["dynamodb:DescribeTable"]
          Resource = flatten([for table in sort(tolist(local.table_names)) : local.tables[table]])
        },
        {
          Sid      = "ExpandTables"
          Effect   = "Allow"
          Action   = ["dynamodb:UpdateTable"]
          Resource = local.tables.journal
        },
        {
          Sid      = "Expiry"
          Effect   = "Allow"
          Action   = ["dynamodb:DescribeTimeToLive", "dynamodb:UpdateTimeToLive"]
          Resource = concat(local.tables.claims, local.tables.revocations)
        },
        local.may_follow,
        {
          Sid      = "Journal"
          Effect   = "Allow"
          Action   = ["dynamodb:Scan"]
          Resource = local.tables.journal
        },
        {
          Sid      = "Claims"
          Effect   = "Allow"
          Action   = ["dynamodb:GetItem"]
          Resource = local.tables.claims
        },
        local.may_bind,
        # The first time it makes the root of keyed hashes, and begins the ledger.
        {
          Sid      = "KeysOfPeople"
          Effect   = "Allow"
          Action   = ["dynamodb:BatchGetItem", "dynamodb:PutItem"]
          Resource = local.tables.keys
        },
        {
          Sid      = "Erasures"
          Effect   = "Allow"
          Action   = ["dynamodb:PutItem", "dynamodb:Query"]
          Resource = local.tables.erasures
        },
        local.may_wrap,
        local.may_decrypt_for["stores"],
      ],
      [
        for some in [local.leases] : {
          Sid      = "Lease"
          Effect   = "Allow"
          Action   = ["dynamodb:DescribeTable"]
          Resource = some
        } if length(some) > 0
      ],
      local.may_connect["migrate"],
    )

    backup = concat(
      [
        local.may_ask_what_is_in_force,
        # Its runs are noted beside what is in force, under keys of their own.
        {
          Sid       = "Runs"
          Effect    = "Allow"
          Action    = ["dynamodb:DeleteItem", "dynamodb:PutItem"]
          Resource  = local.tables.operations
          Condition = { "ForAllValues:StringLike" = { "dynamodb:LeadingKeys" = ["run#*"] } }
        },
        {
          Sid      = "FindRuns"
          Effect   = "Allow"
          Action   = ["dynamodb:DescribeTable", "dynamodb:Scan"]
          Resource = local.tables.operations
        },
        {
          Sid      = "ListTables"
          Effect   = "Allow"
          Action   = ["dynamodb:ListBackups", "dynamodb:ListTables"]
          Resource = ["*"]
        },
        {
          Sid    = "DescribeTables"
          Effect = "Allow"
          Action = [
            "dynamodb:DescribeContinuousBackups", "dynamodb:DescribeTable", "dynamodb:DescribeTimeToLive",
            "dynamodb:GetResourcePolicy", "dynamodb:ListTagsOfResource",
          ]
          Resource = local.described_tables
        },
        {
          Sid      = "DescribeStreams"
          Effect   = "Allow"
          Action   = ["dynamodb:GetResourcePolicy"]
          Resource = local.streams
        },
        {
          Sid      = "DescribeAlarms"
          Effect   = "Allow"
          Action   = ["cloudwatch:DescribeAlarms"]
          Resource = ["*"]
        },
        {
          Sid      = "Backups"
          Effect   = "Allow"
          Action   = ["dynamodb:CreateBackup", "dynamodb:UpdateContinuousBackups"]
          Resource = local.backed_up_tables
        },
        {
          Sid      = "ProveBackups"
          Effect   = "Allow"
          Action   = ["dynamodb:DeleteBackup", "dynamodb:DescribeBackup", "dynamodb:RestoreTableFromBackup"]
          Resource = local.backups_of_tables
        },
        {
          Sid      = "TablesOfProofs"
          Effect   = "Allow"
          Action   = local.filling
          Resource = local.proving_tables
        },
        {
          Sid      = "FollowTheJournal"
          Effect   = "Allow"
          Action   = ["dynamodb:DescribeStream", "dynamodb:GetRecords", "dynamodb:GetShardIterator"]
          Resource = concat(local.streams, [for table in local.proving_tables : "${table}/stream/*"])
        },
        {
          Sid      = "Journal"
          Effect   = "Allow"
          Action   = ["dynamodb:Scan"]
          Resource = local.tables.journal
        },
        # `journal verify` follows the feed.
        {
          Sid      = "Feed"
          Effect   = "Allow"
          Action   = ["dynamodb:Query"]
          Resource = concat(local.tables.journal, local.by_slice)
        },
        {
          Sid      = "Claims"
          Effect   = "Allow"
          Action   = ["dynamodb:GetItem"]
          Resource = local.tables.claims
        },
        {
          Sid      = "KeysOfPeople"
          Effect   = "Allow"
          Action   = ["dynamodb:BatchGetItem", "dynamodb:Query"]
          Resource = local.tables.keys
        },
        local.may_decrypt_for["everything"],
        local.may_encrypt_tables,
        local.may_read_secrets["others"],
      ],
      local.may_read_backups,
      [
        for some in [local.backup_buckets] : {
          Sid      = "FindUploads"
          Effect   = "Allow"
          Action   = ["s3:ListBucketMultipartUploads"]
          Resource = some
        } if length(some) > 0
      ],
      [
        for some in [local.objects_of_backups] : {
          Sid      = "WriteBackups"
          Effect   = "Allow"
          Action   = ["s3:AbortMultipartUpload", "s3:DeleteObject", "s3:DeleteObjectVersion", "s3:GetObject", "s3:ListMultipartUploadParts", "s3:PutObject"]
          Resource = some
        } if length(some) > 0
      ],
      [for some in [local.backup_buckets] : local.may_encrypt_objects if length(some) > 0],
      local.may_connect["backup"],
    )

    # People run one-off tasks with it: restore, erase again, rotate keys, revoke tokens. Backups it takes away only when
    # who made them died before noting them; AWS can't tell those from others.
    operator = concat(
      [
        {
          Sid      = "TablesInForce"
          Effect   = "Allow"
          Action   = ["dynamodb:DeleteItem", "dynamodb:DescribeTable", "dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:Scan"]
          Resource = local.tables.operations
        },
        {
          Sid      = "ListTables"
          Effect   = "Allow"
          Action   = ["dynamodb:ListBackups", "dynamodb:ListTables"]
          Resource = ["*"]
        },
        {
          Sid      = "DescribeTables"
          Effect   = "Allow"
          Action   = ["dynamodb:DescribeTable"]
          Resource = flatten([for table in ["claims", "journal", "keys", "revocations", "snapshots"] : local.first[table]])
        },
        {
          Sid      = "Fence"
          Effect   = "Allow"
          Action   = ["dynamodb:DeleteResourcePolicy", "dynamodb:GetResourcePolicy", "dynamodb:PutResourcePolicy"]
          Resource = local.described_tables
        },
        {
          Sid      = "Restore"
          Effect   = "Allow"
          Action   = ["dynamodb:DeleteBackup", "dynamodb:DescribeBackup", "dynamodb:RestoreTableFromBackup"]
          Resource = local.backups_of_tables
        },
        {
          Sid      = "RestoreToASecond"
          Effect   = "Allow"
          Action   = ["dynamodb:RestoreTableToPointInTime"]
          Resource = local.backed_up_tables
        },
        {
          Sid      = "RecoveryPoints"
          Effect   = "Allow"
          Action   = ["dynamodb:DescribeContinuousBackups"]
          Resource = flatten([for table in ["claims", "journal", "keys", "revocations"] : local.first[table]])
        },
        {
          Sid      = "RestoredTables"
          Effect   = "Allow"
          Action   = concat(local.filling, ["dynamodb:CreateTable", "dynamodb:DescribeTimeToLive", "dynamodb:TagResource", "dynamodb:UpdateContinuousBackups", "dynamodb:UpdateTimeToLive"])
          Resource = local.restored_tables
        },
        {
          Sid      = "RemainsOfProofs"
          Effect   = "Allow"
          Action   = ["dynamodb:DeleteTable", "dynamodb:DescribeContinuousBackups", "dynamodb:DescribeTable"]
          Resource = local.proving_tables
        },
        {
          Sid      = "Alarms"
          Effect   = "Allow"
          Action   = ["cloudwatch:DeleteAlarms", "cloudwatch:PutMetricAlarm"]
          Resource = ["${local.arn}:cloudwatch:${local.place}:${var.account_id}:alarm:${var.name}-*"]
        },
        {
          Sid      = "Sweep"
          Effect   = "Allow"
          Action   = ["dynamodb:Query"]
          Resource = [for table in local.first.journal : "${table}/index/by-slice"]
        },
        local.may_follow,
        {
          Sid      = "Journal"
          Effect   = "Allow"
          Action   = ["dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:Query", "dynamodb:Scan"]
          Resource = local.first.journal
        },
        {
          Sid      = "Claims"
          Effect   = "Allow"
          Action   = ["dynamodb:DeleteItem", "dynamodb:GetItem"]
          Resource = local.first.claims
        },
        local.may_bind,
        {
          Sid      = "Snapshots"
          Effect   = "Allow"
          Action   = ["dynamodb:DeleteItem", "dynamodb:Query"]
          Resource = local.first.snapshots
        },
        {
          Sid      = "KeysOfPeople"
          Effect   = "Allow"
          Action   = ["dynamodb:BatchGetItem", "dynamodb:PutItem", "dynamodb:Query", "dynamodb:Scan"]
          Resource = local.first.keys
        },
        {
          Sid      = "Revocations"
          Effect   = "Allow"
          Action   = ["dynamodb:PutItem", "dynamodb:Scan"]
          Resource = local.first.revocations
        },
        {
          Sid      = "Erasures"
          Effect   = "Allow"
          Action   = ["dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:Query"]
          Resource = local.tables.erasures
        },
        local.may_wrap,
        local.may_decrypt_for["everything"],
        local.may_encrypt_tables,
        local.may_read_secrets["operators"],
      ],
      # `kiseki database prepare` signs in as the server's administrator, once.
      [
        for secret in compact([var.database_admin_secret_arn]) : {
          Sid      = "DatabaseAdministrator"
          Effect   = "Allow"
          Action   = ["secretsmanager:GetSecretValue"]
          Resource = secret
        }
      ],
      local.may_read_backups,
      # A restore holds the same locks as a backup.
      [
        for some in [local.backup_buckets] : {
          Sid      = "ReadBackups"
          Effect   = "Allow"
          Action   = ["s3:GetObject"]
          Resource = local.objects_of_backups
        } if length(some) > 0
      ],
      [
        for some in [local.backup_buckets] : {
          Sid      = "Locks"
          Effect   = "Allow"
          Action   = ["s3:DeleteObject", "s3:DeleteObjectVersion", "s3:PutObject"]
          Resource = [for bucket in some : "${bucket}/*/.locks/*"]
        } if length(some) > 0
      ],
      [for some in [local.backup_buckets] : local.may_encrypt_objects if length(some) > 0],
      # Compares both regions, and takes the tables of the one that is left out of their group.
      [
        for some in [local.leases] : {
          Sid      = "Failover"
          Effect   = "Allow"
          Action   = ["dynamodb:DeleteTableReplica", "dynamodb:Scan", "dynamodb:UpdateTable"]
          Resource = flatten([for table in ["claims", "journal", "keys", "snapshots"] : local.first[table]])
        } if length(some) > 0
      ],
      local.may_hold_the_lease,
      local.may_connect["operator"],
    )
  }

  policies = { for process, statements in local.statements : process => jsonencode({ Version = "2012-10-17", Statement = statements }) }

  # AWS takes 10,240 characters for the policies that are a role's own, which is too few for the operator. What is over
  # the half of its statements is a policy of its own, for which AWS takes 6,144.
  half = floor(length(local.statements.operator) / 2)
  written = merge(local.policies, {
    operator = jsonencode({ Version = "2012-10-17", Statement = slice(local.statements.operator, 0, local.half) })
  })
  second_half = jsonencode({
    Version   = "2012-10-17"
    Statement = slice(local.statements.operator, local.half, length(local.statements.operator))
  })
}
