mock_provider "aws" {}

variables {
  name            = "kiseki-test"
  region          = "eu-central-1"
  account_id      = "123456789012"
  cidr            = "10.20.0.0/16"
  zones           = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]
  log_kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/logs"
}

run "three_zones_without_a_way_out" {
  command = plan

  assert {
    condition     = output.public_subnet_cidrs == ["10.20.0.0/23", "10.20.2.0/23", "10.20.4.0/23"]
    error_message = "The public subnets lie elsewhere."
  }

  assert {
    condition     = output.private_subnet_cidrs == ["10.20.32.0/19", "10.20.64.0/19", "10.20.96.0/19"]
    error_message = "The private subnets lie elsewhere."
  }

  assert {
    condition     = output.isolated_subnet_cidrs == ["10.20.16.0/23", "10.20.18.0/23", "10.20.20.0/23"]
    error_message = "The isolated subnets lie elsewhere."
  }

  assert {
    condition     = length(aws_nat_gateway.this) == 0 && length(aws_route.nat) == 0
    error_message = "There is a way out that nobody asked for."
  }

  assert {
    condition     = !anytrue([for subnet in aws_subnet.public : subnet.map_public_ip_on_launch])
    error_message = "What starts in a public subnet would get a public address."
  }

  assert {
    condition     = toset(keys(aws_vpc_endpoint.interface)) == toset(["ecr.api", "ecr.dkr", "kms", "logs", "monitoring", "secretsmanager"])
    error_message = "The interface endpoints are others than the processes need."
  }

  assert {
    condition     = aws_route53_zone.streams[0].name == "streams.dynamodb.eu-central-1.amazonaws.com"
    error_message = "The processes would not find the streams of DynamoDB."
  }
}

run "a_zone_more_moves_no_subnet" {
  command = plan

  variables {
    zones = ["eu-central-1a", "eu-central-1b", "eu-central-1c", "eu-central-1d"]
  }

  assert {
    condition = (
      slice(output.public_subnet_cidrs, 0, 3) == run.three_zones_without_a_way_out.public_subnet_cidrs &&
      slice(output.private_subnet_cidrs, 0, 3) == run.three_zones_without_a_way_out.private_subnet_cidrs &&
      slice(output.isolated_subnet_cidrs, 0, 3) == run.three_zones_without_a_way_out.isolated_subnet_cidrs
    )
    error_message = "A fourth zone would make the subnets of the others anew."
  }
}

run "endpoints_let_in_this_account_alone" {
  command = plan

  assert {
    condition = alltrue([
      for endpoint in concat(values(aws_vpc_endpoint.interface), aws_vpc_endpoint.streams) :
      jsondecode(endpoint.policy).Statement[0].Condition.StringEquals["aws:PrincipalAccount"] == "123456789012"
    ])
    error_message = "An endpoint lets in other accounts."
  }

  assert {
    condition = (
      jsondecode(aws_vpc_endpoint.interface["kms"].policy).Statement[0].Condition.StringEquals["aws:ResourceAccount"] ==
      "123456789012"
    )
    error_message = "Keys of other accounts can be used from here."
  }

  assert {
    condition     = jsondecode(aws_vpc_endpoint.gateway["dynamodb"].policy).Statement[0].Resource == "arn:aws:dynamodb:eu-central-1:123456789012:table/kiseki-test-*"
    error_message = "The endpoint of DynamoDB leads to other tables."
  }
}

run "one_way_out" {
  command = plan

  variables {
    nat = "one"
  }

  assert {
    condition     = keys(aws_nat_gateway.this) == ["eu-central-1a"] && length(aws_route.nat) == 3
    error_message = "One gateway serves all three zones."
  }
}

run "a_way_out_of_each_zone" {
  command = plan

  variables {
    nat = "per-zone"
  }

  assert {
    condition     = length(aws_nat_gateway.this) == 3 && length(aws_route.nat) == 3
    error_message = "Each zone has its own."
  }
}

run "two_zones_are_too_few" {
  command = plan

  variables {
    zones = ["eu-central-1a", "eu-central-1b"]
  }

  expect_failures = [var.zones]
}

run "zones_of_another_region" {
  command = plan

  variables {
    zones = ["eu-west-1a", "eu-west-1b", "eu-west-1c"]
  }

  expect_failures = [var.zones]
}

run "addresses_that_are_no_network" {
  command = plan

  variables {
    cidr = "10.20.0.1/16"
  }

  expect_failures = [var.cidr]
}

run "too_small_a_network" {
  command = plan

  variables {
    cidr = "10.20.0.0/24"
  }

  expect_failures = [var.cidr]
}

run "public_addresses" {
  command = plan

  variables {
    cidr = "11.0.0.0/16"
  }

  expect_failures = [var.cidr]
}

run "a_way_out_that_there_is_not" {
  command = plan

  variables {
    nat = "two"
  }

  expect_failures = [var.nat]
}

run "no_endpoint_and_no_way_out" {
  command = plan

  variables {
    streams_endpoint = false
  }

  expect_failures = [var.streams_endpoint]
}

run "the_streams_over_the_internet" {
  command = plan

  variables {
    nat              = "one"
    streams_endpoint = false
  }

  assert {
    condition     = length(aws_vpc_endpoint.streams) + length(aws_route53_zone.streams) + length(aws_route53_record.streams) == 0
    error_message = "The processes would still be led to an endpoint."
  }
}
