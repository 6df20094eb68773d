# As long as policies get: the longest names, two regions, and all that can be named.

mock_provider "aws" {
  override_during = plan

  mock_resource "aws_kms_key" {
    defaults = { arn = "arn:aws:kms:ap-southeast-1:000000000000:key/mrk-00000000000000000000000000000000" }
  }

  mock_resource "aws_kms_replica_key" {
    defaults = { arn = "arn:aws:kms:ap-northeast-1:000000000000:key/mrk-00000000000000000000000000000000" }
  }
}

run "two_regions_with_the_longest_names" {
  command = plan

  variables {
    name                          = "projectfix-environment"
    region                        = "ap-southeast-1"
    replica_regions               = ["ap-northeast-1"]
    lease_region                  = "ap-northeast-3"
    token_secret                  = true
    account_id                    = "000000000000"
    database_resource_id          = "db-ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    backup_bucket                 = "projectfix-environment-backups-000000000000"
    key_backup_bucket             = "projectfix-environment-private-backups-000000000000"
    failure_bucket                = "projectfix-environment-failures-000000000000"
    database_admin_secret_arn     = "arn:aws:secretsmanager:ap-southeast-1:000000000000:secret:rds!db-00000000-0000-0000-0000-000000000000-AbCdEf"
    replica_database_resource_ids = { ap-northeast-1 = "db-ZYXWVUTSRQPONMLKJIHGFEDCBA" }
  }

  assert {
    condition     = length(var.name) == 22
    error_message = "The longest name that a system can have, ten letters, a dash and eleven."
  }

  assert {
    condition     = alltrue([for one in aws_iam_role_policy.process : length(one.policy) <= 10240])
    error_message = "AWS takes at most 10,240 characters for the policy of a role."
  }

  assert {
    condition     = length(aws_iam_policy.operator.policy) <= 6144
    error_message = "AWS takes at most 6,144 characters for a policy."
  }

  assert {
    condition = jsondecode(output.policies["operator"]).Statement == concat(
      jsondecode(aws_iam_role_policy.process["operator"].policy).Statement, jsondecode(aws_iam_policy.operator.policy).Statement
    )
    error_message = "The operator may do something else than its policy says."
  }
}
