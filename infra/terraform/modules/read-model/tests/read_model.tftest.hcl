mock_provider "aws" {
  mock_resource "aws_db_instance" {
    override_during = plan
    defaults = {
      address            = "db.example.eu-central-1.rds.amazonaws.com"
      resource_id        = "db-ABC"
      master_user_secret = [{ secret_arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:rds!db-1-AbCdEf" }]
    }
  }
}

variables {
  name                      = "kiseki-test"
  region                    = "eu-central-1"
  account_id                = "123456789012"
  vpc_id                    = "vpc-1"
  subnet_ids                = ["subnet-a", "subnet-b", "subnet-c"]
  client_security_group_ids = { command-api = "sg-1", query-api = "sg-2" }
  kms_key_arn               = "arn:aws:kms:eu-central-1:123456789012:key/data"
  log_kms_key_arn           = "arn:aws:kms:eu-central-1:123456789012:key/data"
}

run "one_region" {
  command = plan

  assert {
    condition = (
      aws_db_instance.this.multi_az && aws_db_instance.this.storage_encrypted && aws_db_instance.this.deletion_protection &&
      aws_db_instance.this.iam_database_authentication_enabled && aws_db_instance.this.manage_master_user_password &&
      !aws_db_instance.this.publicly_accessible
    )
    error_message = "The database is not as safe as it should be."
  }

  assert {
    condition     = length(aws_secretsmanager_secret.master) == 0
    error_message = "RDS keeps the password; there is nothing for a second secret."
  }

  assert {
    condition     = aws_db_instance.this.password == null && aws_db_instance.this.password_wo == null
    error_message = "There is a password that somebody knows."
  }

  assert {
    condition     = contains([for parameter in aws_db_parameter_group.this.parameter : "${parameter.name}=${parameter.value}"], "rds.force_ssl=1")
    error_message = "The database would take connections without TLS."
  }

  assert {
    condition     = toset([for rule in aws_vpc_security_group_ingress_rule.clients : rule.referenced_security_group_id]) == toset(["sg-1", "sg-2"])
    error_message = "Others than the processes reach the database."
  }

  assert {
    condition     = output.urls.kiseki == "postgresql://kiseki@db.example.eu-central-1.rds.amazonaws.com:5432/kiseki?sslmode=verify-full&sslrootcert=/etc/kiseki/rds-global-bundle.pem&auth=aws-iam&region=eu-central-1"
    error_message = "The URL of the read models is another one."
  }

  assert {
    condition     = output.admin_url == "postgresql://kiseki_master@db.example.eu-central-1.rds.amazonaws.com:5432/postgres?sslmode=verify-full&sslrootcert=/etc/kiseki/rds-global-bundle.pem&password=aws-sm%3A%2F%2Farn%3Aaws%3Asecretsmanager%3Aeu-central-1%3A123456789012%3Asecret%3Ards%21db-1-AbCdEf%3Fregion%3Deu-central-1%23password"
    error_message = "The administrator's URL is another one."
  }

  assert {
    condition     = output.scale_limit == "db.r8g.large"
    error_message = "Without a maximum of its own the class says how many connections there are."
  }
}

run "with_a_maximum_of_connections" {
  command = plan

  variables {
    max_connections = 400
  }

  assert {
    condition     = output.scale_limit == "400" && contains([for parameter in aws_db_parameter_group.this.parameter : "${parameter.name}=${parameter.value}"], "max_connections=400")
    error_message = "The maximum is another one."
  }
}

run "a_replica_elsewhere" {
  command = plan

  variables {
    replica = {
      region             = "eu-west-1"
      kms_key_arn        = "arn:aws:kms:eu-west-1:123456789012:key/data"
      log_kms_key_arn    = "arn:aws:kms:eu-west-1:123456789012:key/data"
      subnet_ids         = ["subnet-a", "subnet-b", "subnet-c"]
      security_group_ids = ["sg-3"]
    }
  }

  assert {
    condition = (
      aws_db_instance.replica[0].region == "eu-west-1" && aws_db_instance.replica[0].storage_encrypted &&
      aws_db_instance.replica[0].deletion_protection && aws_db_instance.replica[0].backup_retention_period == 7
    )
    error_message = "The replica is less safe than the database."
  }

  # https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/rds-secrets-manager.html#rds-secrets-manager-limitations
  assert {
    condition = (
      aws_db_instance.this.manage_master_user_password == null && aws_db_instance.this.password_wo_version == 1 &&
      aws_db_instance.this.password_wo == null && length(aws_secretsmanager_secret.master) == 1
    )
    error_message = "RDS makes no replica of a server whose password it keeps."
  }
}

run "backups_that_outlive_an_erasure" {
  command = plan

  variables {
    backup_days = 8
  }

  expect_failures = [var.backup_days]
}

run "an_old_server" {
  command = plan

  variables {
    engine_version = "15"
  }

  expect_failures = [var.engine_version]
}

run "a_minor_version" {
  command = plan

  variables {
    engine_version = "17.4"
  }

  expect_failures = [var.engine_version]
}

run "two_zones_are_too_few" {
  command = plan

  variables {
    subnet_ids = ["subnet-a", "subnet-b"]
  }

  expect_failures = [var.subnet_ids]
}
