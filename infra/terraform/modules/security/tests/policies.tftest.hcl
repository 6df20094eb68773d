# The policies as they would be made. The test of the roles reads them here.

mock_provider "aws" {
  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:eu-west-1:000000000000:key/mrk-00000000000000000000000000000000" }
  }
}

override_resource {
  target = aws_kms_key.data
  values = { arn = "arn:aws:kms:eu-west-1:000000000000:key/00000000-0000-0000-0000-00000000da1a" }
}

override_resource {
  target = aws_kms_key.master
  values = { arn = "arn:aws:kms:eu-west-1:000000000000:key/mrk-00000000000000000000000000000000" }
}

variables {
  name                 = "kiseki-test"
  account_id           = "000000000000"
  region               = "eu-west-1"
  token_secret         = true
  database_resource_id = "db-ABCDEFGHIJKLMNOPQRSTUVWXYZ"
  backup_bucket        = "kiseki-test-backup"
  key_backup_bucket    = "kiseki-test-key-backup"
  failure_bucket       = "kiseki-test-failures"
}

run "one_region" {
  assert {
    condition     = alltrue([for process, policy in output.policies : length(policy) <= 10240])
    error_message = "AWS takes at most 10,240 characters for the policy of a role."
  }
}
