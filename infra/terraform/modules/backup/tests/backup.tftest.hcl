mock_provider "aws" {}

variables {
  name              = "kiseki-test"
  region            = "eu-central-1"
  account_id        = "123456789012"
  kms_key_arn       = "arn:aws:kms:eu-central-1:123456789012:key/data"
  table_kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/data"
  table_arns = {
    journal   = "arn:aws:dynamodb:eu-central-1:123456789012:table/kiseki-test-journal"
    claims    = "arn:aws:dynamodb:eu-central-1:123456789012:table/kiseki-test-claims"
    snapshots = "arn:aws:dynamodb:eu-central-1:123456789012:table/kiseki-test-snapshots"
  }
}

run "one_region" {
  command = plan

  assert {
    condition     = toset(aws_backup_selection.this.resources) == toset(values(var.table_arns))
    error_message = "AWS Backup copies other tables."
  }

  assert {
    condition     = aws_backup_vault_lock_configuration.this[0].changeable_for_days == null
    error_message = "Only `compliance` may lock the vault for good."
  }

  assert {
    condition     = output.bucket_names == { backups = "kiseki-test-backups-123456789012", private = "kiseki-test-private-backups-123456789012" }
    error_message = "The buckets have other names."
  }

  assert {
    condition     = aws_s3_bucket_lifecycle_configuration.private.rule[0].expiration[0].days == 6
    error_message = "Copies of keys would not end within a week."
  }

  assert {
    condition     = length(aws_backup_vault.copy) == 0
    error_message = "There is a copy that nobody asked for."
  }
}

run "a_copy_in_another_region_locked_for_good" {
  command = plan

  variables {
    copy = { region = "eu-west-1", kms_key_arn = "arn:aws:kms:eu-west-1:123456789012:key/data", retention_days = 60 }
    lock = { mode = "compliance" }
  }

  assert {
    condition     = aws_backup_vault.copy[0].region == "eu-west-1" && aws_backup_vault_lock_configuration.copy[0].region == "eu-west-1"
    error_message = "The copy is elsewhere."
  }

  assert {
    condition     = aws_backup_vault_lock_configuration.this[0].changeable_for_days == 3 && aws_backup_vault_lock_configuration.copy[0].changeable_for_days == 3
    error_message = "Both vaults are locked for good after three days."
  }

  assert {
    condition     = one([for rule in aws_backup_plan.this.rule : one([for copy in rule.copy_action : one(copy.lifecycle[*].delete_after)])]) == 60
    error_message = "The copy is kept otherwise."
  }
}

run "keys_are_never_in_it" {
  command = plan

  variables {
    table_arns = { journal = "j", claims = "c", keys = "k" }
  }

  expect_failures = [var.table_arns]
}

run "a_journal_needs_its_claims" {
  command = plan

  variables {
    table_arns = { journal = "j" }
  }

  expect_failures = [var.table_arns]
}

run "shorter_than_the_lock" {
  command = plan

  variables {
    retention_days = 5
  }

  expect_failures = [var.lock]
}

run "an_unknown_lock" {
  command = plan

  variables {
    lock = { mode = "strict" }
  }

  expect_failures = [var.lock]
}

run "keys_kept_for_too_long" {
  command = plan

  variables {
    private_days = 7
  }

  expect_failures = [var.private_days]
}

run "a_copy_with_a_key_of_elsewhere" {
  command = plan

  variables {
    copy = { region = "eu-west-1", kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/data" }
  }

  expect_failures = [var.copy]
}

run "what_aws_sends_and_who_may_log" {
  command = plan

  variables {
    notifications = { topic_arn = "arn:aws:sns:eu-central-1:123456789012:kiseki-test-alarms" }
  }

  # https://docs.aws.amazon.com/aws-backup/latest/devguide/API_PutBackupVaultNotifications.html
  assert {
    condition = length(setsubtract(aws_backup_vault_notifications.this[0].backup_vault_events, [
      "BACKUP_JOB_STARTED", "BACKUP_JOB_COMPLETED", "COPY_JOB_STARTED", "COPY_JOB_SUCCESSFUL", "COPY_JOB_FAILED",
      "RESTORE_JOB_STARTED", "RESTORE_JOB_COMPLETED", "RECOVERY_POINT_MODIFIED",
    ])) == 0
    error_message = "AWS Backup takes other events and never sends them."
  }
}
