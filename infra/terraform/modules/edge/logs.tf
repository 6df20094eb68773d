# Where the load balancer writes who asked for what, and which connections failed. An address and the URL of a query by
# GET may be personal data, so the logs end by themselves.

locals {
  log_prefixes = { access = "access", connections = "connections" }
}

resource "aws_s3_bucket" "logs" {
  #checkov:skip=CKV_AWS_145: the load balancer writes only into buckets that S3 encrypts with its own keys
  #checkov:skip=CKV_AWS_18: a log of who reads the logs would be written here again; CloudTrail has it
  #checkov:skip=CKV_AWS_144: logs of a region are of no use in another one, and end after some weeks
  #checkov:skip=CKV2_AWS_62: nothing has to happen when a log file comes
  bucket = "${var.name}-alb-${var.account_id}-${var.region}"

  tags = var.tags

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_s3_bucket_public_access_block" "logs" {
  bucket = aws_s3_bucket.logs.bucket

  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "logs" {
  bucket = aws_s3_bucket.logs.bucket

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "logs" {
  bucket = aws_s3_bucket.logs.bucket

  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

# What was written can't be changed unnoticed: an overwritten file stays beside the new one until its time.
resource "aws_s3_bucket_versioning" "logs" {
  bucket = aws_s3_bucket.logs.bucket

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "logs" {
  bucket = aws_s3_bucket.logs.bucket

  rule {
    id     = "end"
    status = "Enabled"

    filter {}

    expiration {
      days = var.access_log_days
    }

    noncurrent_version_expiration {
      noncurrent_days = 1
    }

    abort_incomplete_multipart_upload {
      days_after_initiation = 1
    }
  }

  depends_on = [aws_s3_bucket_versioning.logs]
}

resource "aws_s3_bucket_policy" "logs" {
  bucket = aws_s3_bucket.logs.bucket

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "TheLoadBalancerWrites"
        Effect    = "Allow"
        Principal = { Service = "logdelivery.elasticloadbalancing.amazonaws.com" }
        Action    = "s3:PutObject"
        Resource = [
          for prefix in values(local.log_prefixes) : "${aws_s3_bucket.logs.arn}/${prefix}/AWSLogs/${var.account_id}/*"
        ]
        Condition = {
          ArnLike = {
            "aws:SourceArn" = "arn:${var.partition}:elasticloadbalancing:${var.region}:${var.account_id}:loadbalancer/app/${var.name}/*"
          }
        }
      },
      {
        Sid       = "OnlyEncrypted"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:*"
        Resource  = [aws_s3_bucket.logs.arn, "${aws_s3_bucket.logs.arn}/*"]
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      },
    ]
  })

  depends_on = [aws_s3_bucket_public_access_block.logs]
}
