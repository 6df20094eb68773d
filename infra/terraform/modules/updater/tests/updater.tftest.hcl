mock_provider "aws" {}

variables {
  name            = "kiseki-test"
  artefact_bucket = "kiseki-test-artefacts-123456789012"
  failure_bucket  = "kiseki-test-failures-123456789012"
  role_arn        = "arn:aws:iam::123456789012:role/kiseki-test-updater-function"
  environment = {
    KISEKI_JOURNAL        = "dynamodb://kiseki-test?region=eu-central-1"
    KISEKI_KEYS           = "dynamodb://kiseki-test?region=eu-central-1"
    KISEKI_READ_MODEL     = "postgresql://kiseki@db:5432/kiseki?auth=aws-iam&region=eu-central-1"
    KISEKI_MASTER_KEY     = "aws-kms://alias/kiseki-test?region=eu-central-1"
    KISEKI_ERASURE_LEDGER = "dynamodb://kiseki-test?region=eu-central-1"
    KISEKI_DATA_DIR       = "/var/lib/kiseki"
  }
  subnet_ids         = ["subnet-0a", "subnet-0b", "subnet-0c"]
  security_group_ids = ["sg-0a"]
  kms_key_arn        = "arn:aws:kms:eu-central-1:123456789012:key/00000000-0000-0000-0000-000000000000"
  stream_arn         = "arn:aws:dynamodb:eu-central-1:123456789012:table/kiseki-test-journal/stream/2026-01-01T00:00:00.000"
  log_group_name     = "/kiseki-test/updater-function"
}

run "without_a_package_there_are_only_buckets_and_the_log" {
  command = plan

  assert {
    condition     = length(aws_lambda_function.this) + length(aws_lambda_alias.live) + length(aws_lambda_event_source_mapping.journal) == 0
    error_message = "A function without a package can't be made."
  }

  assert {
    condition     = output.function_name == null && output.reserved_concurrency == 0
    error_message = "Outputs tell of a function that is not there."
  }

  assert {
    condition     = alltrue([for block in aws_s3_bucket_public_access_block.this : block.block_public_acls && block.block_public_policy && block.ignore_public_acls && block.restrict_public_buckets])
    error_message = "A bucket is open to the public."
  }
}

run "with_one_the_mapping_loses_nothing" {
  command = plan

  variables {
    package = { bucket = "kiseki-test-artefacts-123456789012", key = "kiseki-1.zip" }
  }

  assert {
    condition = alltrue([for mapping in aws_lambda_event_source_mapping.journal :
      mapping.starting_position == "TRIM_HORIZON" && mapping.function_response_types == toset(["ReportBatchItemFailures"])
      && mapping.bisect_batch_on_function_error && mapping.maximum_retry_attempts == -1
      && mapping.maximum_record_age_in_seconds == 82800
    ])
    error_message = "The mapping begins late, or gives records up before their time."
  }

  assert {
    condition     = jsondecode(one(one(aws_lambda_event_source_mapping.journal[0].filter_criteria).filter).pattern) == { eventName = ["INSERT"] }
    error_message = "The mapping hands on something else than new items."
  }

  assert {
    condition     = aws_lambda_function.this[0].publish && aws_lambda_function.this[0].reserved_concurrent_executions == 20
    error_message = "The function has no version, or no limit."
  }

  assert {
    condition     = one(aws_lambda_function.this[0].environment).variables["KISEKI_DATA_DIR"] == "/tmp/kiseki"
    error_message = "A function can write to /tmp alone."
  }
}

run "a_password_in_a_url_is_refused" {
  command = plan

  variables {
    environment = {
      KISEKI_JOURNAL        = "dynamodb://kiseki-test?region=eu-central-1"
      KISEKI_KEYS           = "dynamodb://kiseki-test?region=eu-central-1"
      KISEKI_READ_MODEL     = "postgresql://kiseki:secret@db:5432/kiseki" # checkov:skip=CKV_SECRET_4: made up, to be refused
      KISEKI_MASTER_KEY     = "aws-kms://alias/kiseki-test?region=eu-central-1"
      KISEKI_ERASURE_LEDGER = "dynamodb://kiseki-test?region=eu-central-1"
    }
  }

  expect_failures = [var.environment]
}

run "a_function_without_its_ledger_is_refused" {
  command = plan

  variables {
    environment = {
      KISEKI_JOURNAL    = "dynamodb://kiseki-test?region=eu-central-1"
      KISEKI_KEYS       = "dynamodb://kiseki-test?region=eu-central-1"
      KISEKI_READ_MODEL = "postgresql://kiseki@db:5432/kiseki"
      KISEKI_MASTER_KEY = "aws-kms://alias/kiseki-test?region=eu-central-1"
    }
  }

  expect_failures = [var.environment]
}

run "few_retries_are_refused" {
  command = plan

  variables {
    maximum_retry_attempts = 5
  }

  expect_failures = [var.maximum_retry_attempts]
}

run "a_record_that_the_stream_forgets_first_is_refused" {
  command = plan

  variables {
    maximum_record_age_seconds = 86400
  }

  expect_failures = [var.maximum_record_age_seconds]
}

run "the_arn_of_the_table_is_refused" {
  command = plan

  variables {
    stream_arn = "arn:aws:dynamodb:eu-central-1:123456789012:table/kiseki-test-journal"
  }

  expect_failures = [var.stream_arn]
}

run "more_batches_of_a_shard_than_environments_are_refused" {
  command = plan

  variables {
    parallelization_factor = 10
    reserved_concurrency   = 5
  }

  expect_failures = [var.parallelization_factor]
}
