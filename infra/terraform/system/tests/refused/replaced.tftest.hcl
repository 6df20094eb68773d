# A plan that would destroy what can't be made again ends with an error: this test has to fail, once for each of them
# (tests/infra/test_refusals.py looks at what it says).

mock_provider "aws" {
  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:eu-central-1:123456789012:key/mrk-1" }
  }
  mock_resource "aws_db_instance" {
    defaults = { master_user_secret = [{ secret_arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:x" }] }
  }
  mock_resource "aws_vpc_endpoint" {
    defaults = { dns_entry = [{ dns_name = "vpce.example.com", hosted_zone_id = "Z0" }] }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/some" }
  }
  mock_resource "aws_dynamodb_table" {
    defaults = {
      arn        = "arn:aws:dynamodb:eu-central-1:123456789012:table/some"
      stream_arn = "arn:aws:dynamodb:eu-central-1:123456789012:table/some/stream/2026-01-01T00:00:00.000"
    }
  }
}

variables {
  environment             = "staging"
  account_id              = "123456789012"
  region                  = "eu-central-1"
  cidr                    = "10.30.0.0/16"
  domain                  = "shop.example.com"
  certificate_arn         = "arn:aws:acm:eu-central-1:123456789012:certificate/0"
  identity                = { issuer = "https://id.example.com/", audience = "shop" }
  alarm_emails            = ["operations@example.com"]
  budget_dollars          = 500
  rate_store_password     = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
  database_admin_password = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
  sizes = {
    command-api = { cpu = 256, memory = 1024 }
    query-api   = { cpu = 256, memory = 1024 }
    updater     = { cpu = 256, memory = 1024 }
    migrate     = { cpu = 256, memory = 1024 }
    backup      = { cpu = 512, memory = 2048 }
  }
  scaling = {
    command-api = { minimum = 1, maximum = 2 }
    query-api   = { minimum = 1, maximum = 2 }
  }
  updater_tasks = 1
  deployment    = { strategy = "BLUE_GREEN", bake_minutes = 0 }
  database      = { class = "db.t4g.small", multi_az = false, storage = 20, storage_most = 50 }
  rate_store    = { node_type = "cache.t4g.micro", nodes = 1 }
  capacity      = { reads = 1000, writes = 500 }
  backup        = { days = 7, lock = "none" }
}

run "made" {}

run "stores_replaced" {
  command = plan

  plan_options {
    replace = [
      module.journal.aws_dynamodb_table.this["journal"],
      module.journal.aws_dynamodb_table.this["claims"],
      module.journal.aws_dynamodb_table.this["snapshots"],
      module.journal.aws_dynamodb_table.this["keys"],
      module.journal.aws_dynamodb_table.this["revocations"],
      module.journal.aws_dynamodb_table.this["operations"],
      module.journal.aws_dynamodb_table.this["erasures"],
      module.read_model.aws_db_instance.this,
      module.backup.aws_backup_vault.this,
      module.backup.aws_s3_bucket.this["backups"],
      module.backup.aws_s3_bucket.this["private"],
      module.updater.aws_s3_bucket.this["failures"],
      module.compute.aws_ecr_repository.this,
      module.security.aws_secretsmanager_secret.this["audit"],
      module.security.aws_secretsmanager_secret.this["token"],
    ]
  }
}
