# What is refused before anything changes.

mock_provider "aws" {}

variables {
  environment         = "staging"
  account_id          = "123456789012"
  region              = "eu-central-1"
  cidr                = "10.30.0.0/16"
  domain              = "shop.example.com"
  zone_id             = "Z0123456789ABCDEFGHIJ"
  identity            = { issuer = "https://id.example.com/", audience = "shop" }
  alarm_emails        = ["operations@example.com"]
  budget_dollars      = 500
  rate_store_password = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
  sizes = {
    command-api = { cpu = 256, memory = 1024 }
    query-api   = { cpu = 256, memory = 1024 }
    updater     = { cpu = 256, memory = 1024 }
    migrate     = { cpu = 256, memory = 1024 }
    backup      = { cpu = 512, memory = 2048 }
  }
  scaling = {
    command-api = { minimum = 1, maximum = 2 }
    query-api   = { minimum = 1, maximum = 2 }
  }
  updater_tasks = 1
  deployment    = { strategy = "BLUE_GREEN", bake_minutes = 0 }
  database      = { class = "db.t4g.small", multi_az = false, storage = 20, storage_most = 50 }
  rate_store    = { node_type = "cache.t4g.micro", nodes = 1 }
  capacity      = { reads = 1000, writes = 500 }
  backup        = { days = 7, lock = "none" }
}

run "nothing_is_refused_of_these" {
  command = plan
}

run "a_system_of_the_same_name_from_another_folder" {
  command = plan

  override_data {
    target          = data.aws_resourcegroupstaggingapi_resources.same_name
    override_during = plan
    values = {
      resource_tag_mapping_list = [{
        resource_arn       = "arn:aws:dynamodb:eu-central-1:123456789012:table/kiseki-staging-journal"
        compliance_details = []
        tags               = { "kiseki:system" = "kiseki-staging", "kiseki:root" = "some-other-folder" }
      }]
    }
  }

  expect_failures = [data.aws_resourcegroupstaggingapi_resources.same_name]
}

run "an_account_that_is_none" {
  command = plan

  variables {
    account_id = "1234"
  }

  expect_failures = [var.account_id]
}

run "keys_of_an_issuer_that_nobody_can_reach" {
  command = plan

  variables {
    identity = { issuer = "https://id.example.com/", audience = "shop", jwks_url = "https://id.example.com/jwks.json" }
  }

  expect_failures = [var.identity]
}

run "keys_of_an_issuer_without_tls" {
  command = plan

  variables {
    nat      = "one"
    identity = { issuer = "https://id.example.com/", audience = "shop", jwks_url = "http://id.example.com/jwks.json" }
  }

  expect_failures = [var.identity]
}

run "two_regions_without_a_third" {
  command = plan

  variables {
    nat             = "one"
    recovery_region = "eu-west-1"
  }

  expect_failures = [var.recovery_region]
}

run "alarms_that_nobody_hears" {
  command = plan

  variables {
    alarm_emails = []
  }

  expect_failures = [var.alarm_emails]
}

run "a_lock_that_aws_does_not_have" {
  command = plan

  variables {
    backup = { days = 7, lock = "for-ever" }
  }

  expect_failures = [var.backup]
}

run "a_zone_by_its_name" {
  command = plan

  variables {
    zone_id = "shop.example.com"
  }

  expect_failures = [var.zone_id]
}

run "an_origin_that_no_browser_sends" {
  command = plan

  variables {
    cors_origins = ["https://console.example.com:8443", "console.example.com"]
  }

  expect_failures = [var.cors_origins]
}
