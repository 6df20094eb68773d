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
    condition     = alltrue([for one in aws_iam_role_policy.process : length(one.policy) <= 10240])
    error_message = "AWS takes at most 10,240 characters for the policy of a role."
  }
}

run "a_lease_in_one_of_the_two_regions" {
  command = plan

  variables {
    replica_regions = ["eu-central-1"]
    lease_region    = "eu-central-1"
  }

  expect_failures = [var.lease_region]
}

run "a_master_key_of_one_region_for_two" {
  command = plan

  variables {
    replica_regions         = ["eu-central-1"]
    multi_region_master_key = false
  }

  expect_failures = [aws_kms_key.master]
}

run "keys_in_the_bucket_of_the_other_backups" {
  command = plan

  variables {
    key_backup_bucket = "kiseki-test-backup"
  }

  expect_failures = [var.key_backup_bucket]
}

# Last: what it makes can't be taken away again.
run "two_regions" {
  variables {
    replica_regions               = ["eu-central-1"]
    lease_region                  = "eu-north-1"
    replica_database_resource_ids = { eu-central-1 = "db-ZYXWVUTSRQPONMLKJIHGFEDCBA" }
    operator_principals           = ["arn:aws:iam::000000000000:role/people"]
  }

  assert {
    condition     = alltrue([for one in aws_iam_role_policy.process : length(one.policy) <= 10240])
    error_message = "AWS takes at most 10,240 characters for the policy of a role."
  }

  assert {
    condition     = output.master_key_urls["eu-central-1"] == "aws-kms://alias/kiseki-test-master?region=eu-central-1"
    error_message = "The processes of each region use the copy of the master key there."
  }

  assert {
    condition     = strcontains(output.policies["command-api"], "kiseki-test-leases")
    error_message = "With two regions the command API holds the lease."
  }
}
