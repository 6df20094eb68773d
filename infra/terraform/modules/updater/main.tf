# The updater as a Lambda function behind the stream of the journal: the fast way into the read models. Used by the system.
#
# The stand-alone updater always runs beside it: it makes builds and sweeps. Here is what a function needs to begin
# (its first package, its alias, its mapping) and what stays (buckets, log). Versions and the weights of the alias belong
# to the command line, so a change of the settings below makes a version that nobody is sent to before the command line
# says so: it is released like code.

locals {
  function_name = coalesce(var.function_name, "${var.name}-updater")
  functions     = var.package == null ? 0 : 1
  buckets = {
    artefacts = var.artefact_bucket
    failures  = var.failure_bucket
  }
}

resource "aws_lambda_function" "this" {
  #checkov:skip=CKV_AWS_50: Segments of Lambda alone would say what its metrics say; the function has no X-Ray in it, and batches are told apart by request_id in its log.
  #checkov:skip=CKV_AWS_116: A dead-letter queue is for asynchronous calls, and this function gets none: its mapping has a destination on failure.
  #checkov:skip=CKV_AWS_272: A signature would be made by those who may write the artefact bucket and move the alias; it would prove no more than they do.
  count = local.functions

  function_name                  = local.function_name
  description                    = "Applies what is new in the journal of ${var.name} to its read models"
  role                           = var.role_arn
  handler                        = "kiseki.service.lambda_handler.handler"
  runtime                        = var.runtime
  architectures                  = [var.architecture]
  s3_bucket                      = var.package.bucket
  s3_key                         = var.package.key
  s3_object_version              = var.package.version
  publish                        = true
  memory_size                    = var.memory_megabytes
  timeout                        = var.timeout_seconds
  reserved_concurrent_executions = var.reserved_concurrency
  kms_key_arn                    = var.kms_key_arn
  tags                           = var.tags

  environment {
    # The only folder that a function can write to.
    variables = merge(var.environment, { KISEKI_DATA_DIR = "/tmp/kiseki" })
  }

  vpc_config {
    subnet_ids         = var.subnet_ids
    security_group_ids = var.security_group_ids
  }

  # The level of the function's own lines is the setting KISEKI_LOG_LEVEL: a filter here would drop lines that metrics are
  # made of. Of Lambda's, INFO has the memory that was used.
  logging_config {
    log_group        = aws_cloudwatch_log_group.function.name
    log_format       = "JSON"
    system_log_level = "INFO"
  }

  tracing_config {
    mode = "PassThrough"
  }

  lifecycle {
    ignore_changes = [s3_bucket, s3_key, s3_object_version]
  }
}

resource "aws_lambda_alias" "live" {
  count = local.functions

  name             = "live"
  description      = "What the mapping invokes; moved by releases"
  function_name    = aws_lambda_function.this[0].function_name
  function_version = aws_lambda_function.this[0].version

  lifecycle {
    ignore_changes = [function_version, routing_config]
  }
}

resource "aws_lambda_event_source_mapping" "journal" {
  count = local.functions

  event_source_arn = var.stream_arn
  function_name    = aws_lambda_alias.live[0].arn
  enabled          = var.enabled

  # Never LATEST: it begins some time after it was asked to, and what is written in between is in no batch.
  starting_position = "TRIM_HORIZON"

  batch_size                         = var.batch_size
  maximum_batching_window_in_seconds = var.batching_window_seconds
  parallelization_factor             = var.parallelization_factor

  # What can't be applied is given back in order, and what is before it is done. Bisecting helps against an invocation
  # that fails as a whole: a batch that is too large for the memory or the time of the function.
  function_response_types        = ["ReportBatchItemFailures"]
  bisect_batch_on_function_error = true
  maximum_retry_attempts         = var.maximum_retry_attempts
  maximum_record_age_in_seconds  = var.maximum_record_age_seconds

  # The journal is only ever added to. What is filtered out is counted, and rings an alarm: somebody changed or removed
  # what had happened.
  filter_criteria {
    filter {
      pattern = jsonencode({ eventName = ["INSERT"] })
    }
  }

  destination_config {
    on_failure {
      destination_arn = aws_s3_bucket.this["failures"].arn
    }
  }

  metrics_config {
    metrics = ["EventCount"]
  }

  tags = var.tags
}

resource "aws_cloudwatch_log_group" "function" {
  name              = var.log_group_name
  retention_in_days = var.log_retention_days
  kms_key_id        = var.kms_key_arn
  tags              = var.tags
}

resource "aws_s3_bucket" "this" {
  #checkov:skip=CKV_AWS_144: A package can be built again, byte by byte, and a record that was given up is in the journal, which has its replicas.
  #checkov:skip=CKV2_AWS_62: Nobody waits for an object: a release names its package, and alarms tell of records that were given up.
  for_each = local.buckets

  bucket = each.value
  tags   = var.tags

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_s3_bucket_versioning" "this" {
  for_each = local.buckets

  bucket = aws_s3_bucket.this[each.key].id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "this" {
  for_each = local.buckets

  bucket = aws_s3_bucket.this[each.key].id

  rule {
    bucket_key_enabled = true

    apply_server_side_encryption_by_default {
      sse_algorithm     = "aws:kms"
      kms_master_key_id = var.kms_key_arn
    }
  }
}

resource "aws_s3_bucket_public_access_block" "this" {
  for_each = local.buckets

  bucket                  = aws_s3_bucket.this[each.key].id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "this" {
  for_each = local.buckets

  bucket = aws_s3_bucket.this[each.key].id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_policy" "this" {
  for_each = local.buckets

  bucket = aws_s3_bucket.this[each.key].id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "OnlyByTls"
      Effect    = "Deny"
      Principal = "*"
      Action    = "s3:*"
      Resource  = [aws_s3_bucket.this[each.key].arn, "${aws_s3_bucket.this[each.key].arn}/*"]
      Condition = {
        Bool = { "aws:SecureTransport" = "false" }
      }
    }]
  })

  depends_on = [aws_s3_bucket_public_access_block.this]
}

resource "aws_s3_bucket_logging" "this" {
  for_each = var.access_log_bucket == null ? {} : local.buckets

  bucket        = aws_s3_bucket.this[each.key].id
  target_bucket = var.access_log_bucket
  target_prefix = "${each.value}/"
}

resource "aws_s3_bucket_lifecycle_configuration" "this" {
  for_each = local.buckets

  bucket = aws_s3_bucket.this[each.key].id

  rule {
    id     = "unfinished-uploads"
    status = "Enabled"

    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }
  }

  # A package stays while a release may go back to it; Lambda keeps a copy of its own of each version.
  rule {
    id     = "earlier-versions"
    status = "Enabled"

    filter {}

    noncurrent_version_expiration {
      noncurrent_days = each.key == "failures" ? 1 : 90
    }
  }

  # What was given up is for finding out why: the journal has the events, and the sweeper applies them.
  dynamic "rule" {
    for_each = each.key == "failures" ? [var.failure_days] : []

    content {
      id     = "records"
      status = "Enabled"

      filter {}

      expiration {
        days = rule.value
      }
    }
  }

  depends_on = [aws_s3_bucket_versioning.this]
}
