mock_provider "aws" {}

variables {
  name                      = "kiseki-test"
  vpc_id                    = "vpc-1"
  subnet_ids                = ["subnet-a", "subnet-b", "subnet-c"]
  client_security_group_ids = { command-api = "sg-1", query-api = "sg-2" }
  kms_key_arn               = "arn:aws:kms:eu-central-1:123456789012:key/data"
  log_kms_key_arn           = "arn:aws:kms:eu-central-1:123456789012:key/data"
  secret_arn                = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:kiseki-test/rate-store-AbCdEf"
  password                  = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
}

run "two_nodes" {
  command = plan

  assert {
    condition = (
      aws_elasticache_replication_group.this.multi_az_enabled && aws_elasticache_replication_group.this.automatic_failover_enabled &&
      aws_elasticache_replication_group.this.transit_encryption_mode == "required" &&
      tobool(aws_elasticache_replication_group.this.at_rest_encryption_enabled)
    )
    error_message = "The store is not as safe as it should be."
  }

  assert {
    condition     = aws_elasticache_user.processes.passwords_wo == null && aws_elasticache_user.processes.passwords == null
    error_message = "The password is in the plan."
  }

  assert {
    condition     = aws_secretsmanager_secret_version.url.secret_string_wo == null && aws_secretsmanager_secret_version.url.secret_string == null
    error_message = "The URL with the password is in the plan."
  }

  assert {
    condition     = one([for parameter in aws_elasticache_parameter_group.this.parameter : "${parameter.name}=${parameter.value}"]) == "maxmemory-policy=noeviction"
    error_message = "A limit could be forgotten."
  }
}

run "no_password_any_more" {
  command = plan

  variables {
    password = null
  }
}

run "one_node_for_a_try" {
  command = plan

  variables {
    nodes = 1
  }

  assert {
    condition     = !aws_elasticache_replication_group.this.multi_az_enabled && !aws_elasticache_replication_group.this.automatic_failover_enabled
    error_message = "One node can't take over from itself."
  }
}

run "a_password_that_would_break_the_url" {
  command = plan

  variables {
    password = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa@"
  }

  expect_failures = [var.password]
}

run "a_short_password" {
  command = plan

  variables {
    password = "secret"
  }

  expect_failures = [var.password]
}
