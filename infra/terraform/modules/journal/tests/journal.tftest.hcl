mock_provider "aws" {}

variables {
  name        = "kiseki-test"
  region      = "eu-central-1"
  kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/data"
}

run "one_region" {
  command = plan

  assert {
    condition     = toset(keys(output.table_names)) == toset(["journal", "claims", "snapshots", "keys", "revocations", "operations", "erasures"])
    error_message = "The tables are others than the code's."
  }

  assert {
    condition     = aws_dynamodb_table.this["journal"].stream_view_type == "NEW_IMAGE"
    error_message = "Followers need the new images."
  }

  assert {
    condition = alltrue([
      for table in aws_dynamodb_table.this : table.deletion_protection_enabled && table.server_side_encryption[0].kms_key_arn == var.kms_key_arn
    ])
    error_message = "A table is without protection from deletion or without our key."
  }

  assert {
    condition = { for name, table in aws_dynamodb_table.this : name => try(table.point_in_time_recovery[0].recovery_period_in_days, null) if table.point_in_time_recovery[0].enabled } == {
      journal = 35, claims = 35, snapshots = 35, keys = 7, revocations = 7
    }
    error_message = "Recovery reaches back too far, or not far enough."
  }

  assert {
    condition     = length(aws_dynamodb_table.leases) == 0 && length(aws_dynamodb_table.operations_of_replicas) == 0
    error_message = "One region needs no lease."
  }
}

run "two_regions_and_a_witness" {
  command = plan

  variables {
    replicas     = { eu-west-1 = "arn:aws:kms:eu-west-1:123456789012:key/data" }
    lease_region = "eu-north-1"
  }

  assert {
    condition     = aws_dynamodb_table.this["journal"].stream_view_type == "NEW_AND_OLD_IMAGES"
    error_message = "DynamoDB replicates from a stream with both images."
  }

  assert {
    condition     = [for name, table in aws_dynamodb_table.this : name if length(table.replica) == 0] == ["operations"]
    error_message = "Every table but operations is replicated."
  }

  assert {
    condition     = toset([for name, table in aws_dynamodb_table.this : name if anytrue([for replica in table.replica : replica.point_in_time_recovery])]) == toset(["journal", "claims", "snapshots"])
    error_message = "A replica keeps 35 days, which is too long for keys of people."
  }

  assert {
    condition     = alltrue(flatten([for table in aws_dynamodb_table.this : [for replica in table.replica : replica.consistency_mode == "EVENTUAL"]]))
    error_message = "A failover takes replicas out of their group, which there is not with strong consistency."
  }

  assert {
    condition     = one(aws_dynamodb_table.leases[*].region) == "eu-north-1" && length(one(aws_dynamodb_table.leases[*].replica)) == 0
    error_message = "The lease is in one region, the witness."
  }
}

run "a_lease_where_a_replica_is" {
  command = plan

  variables {
    replicas     = { eu-west-1 = "arn:aws:kms:eu-west-1:123456789012:key/data" }
    lease_region = "eu-west-1"
  }

  expect_failures = [aws_dynamodb_table.leases]
}

run "keys_kept_for_too_long" {
  command = plan

  variables {
    key_recovery_days = 8
  }

  expect_failures = [var.key_recovery_days]
}

run "a_replica_with_a_key_of_elsewhere" {
  command = plan

  variables {
    replicas = { eu-west-1 = "arn:aws:kms:eu-central-1:123456789012:key/data" }
  }

  expect_failures = [var.replicas]
}
