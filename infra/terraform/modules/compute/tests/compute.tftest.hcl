# What runs, without AWS: phases of a first set-up, containers, services, schedules, who reaches whom, what is refused.

mock_provider "aws" {
  mock_resource "aws_ecs_cluster" {
    defaults = { arn = "arn:aws:ecs:eu-central-1:123456789012:cluster/shop-test" }
  }

  mock_resource "aws_ecs_task_definition" {
    defaults = { arn = "arn:aws:ecs:eu-central-1:123456789012:task-definition/mock:1" }
  }

  mock_resource "aws_security_group" {
    defaults = { id = "sg-0123456789abcdef0" }
  }
}

variables {
  name   = "shop-test"
  region = "eu-central-1"
  image  = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/shop-test@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

  environment = {
    command-api = { KISEKI_PROFILE = "production", KISEKI_AUDIT_KEY = "aws-sm://shop-test/audit#value" }
    query-api   = { KISEKI_PROFILE = "production" }
    updater     = { KISEKI_PROFILE = "production" }
    migrate     = { KISEKI_PROFILE = "production" }
    backup      = { KISEKI_PROFILE = "production" }
  }

  task_role_arns = {
    command-api = "arn:aws:iam::123456789012:role/shop-test-command-api"
    query-api   = "arn:aws:iam::123456789012:role/shop-test-query-api"
    updater     = "arn:aws:iam::123456789012:role/shop-test-updater"
    migrate     = "arn:aws:iam::123456789012:role/shop-test-migrate"
    backup      = "arn:aws:iam::123456789012:role/shop-test-backup"
  }

  execution_role_arns = {
    command-api = "arn:aws:iam::123456789012:role/shop-test-command-api-execution"
    query-api   = "arn:aws:iam::123456789012:role/shop-test-query-api-execution"
    updater     = "arn:aws:iam::123456789012:role/shop-test-updater-execution"
    migrate     = "arn:aws:iam::123456789012:role/shop-test-migrate-execution"
    backup      = "arn:aws:iam::123456789012:role/shop-test-backup-execution"
  }

  infrastructure_role_arn = "arn:aws:iam::123456789012:role/shop-test-infrastructure"
  scheduler_role_arn      = "arn:aws:iam::123456789012:role/shop-test-scheduler"

  vpc_id                       = "vpc-1"
  subnet_ids                   = ["subnet-1", "subnet-2", "subnet-3"]
  balancer_security_group_id   = "sg-balancer"
  endpoint_security_group_id   = "sg-endpoints"
  prefix_list_ids              = { s3 = "pl-s3", dynamodb = "pl-dynamodb" }
  database_security_group_ids  = { read-model = "sg-read-model" }
  rate_store_security_group_id = "sg-rate-store"

  load_balancing = {
    command-api = {
      target_group_arn           = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:targetgroup/shop-test-cmd-blue/1"
      alternate_target_group_arn = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:targetgroup/shop-test-cmd-green/2"
      production_rule_arn        = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:listener-rule/app/shop-test/1/1/1"
      test_rule_arn              = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:listener-rule/app/shop-test/1/2/2"
    }
    query-api = {
      target_group_arn           = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:targetgroup/shop-test-qry-blue/3"
      alternate_target_group_arn = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:targetgroup/shop-test-qry-green/4"
      production_rule_arn        = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:listener-rule/app/shop-test/1/1/3"
      test_rule_arn              = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:listener-rule/app/shop-test/1/2/4"
    }
  }

  kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/1"
}

run "without_an_image_nothing_runs_yet" {
  command = plan

  variables {
    image = null
  }

  assert {
    condition     = length(aws_ecs_task_definition.this) == 0 && length(aws_ecs_service.api) == 0 && length(aws_ecs_service.updater) == 0 && length(aws_scheduler_schedule.this) == 0
    error_message = "Nothing that needs an image is made before there is one."
  }

  assert {
    condition     = aws_ecr_repository.this.name == "shop-test" && aws_ecs_cluster.this.name == "shop-test"
    error_message = "There is a repository that the image can be pushed to."
  }
}

run "with_an_image_the_tables_can_be_made_first" {
  command = plan

  variables {
    start_services = false
  }

  assert {
    condition     = contains(keys(aws_ecs_task_definition.this), "migrate") && length(aws_ecs_service.api) == 0 && length(aws_ecs_service.updater) == 0
    error_message = "`kiseki migrate` can run as a task before any service."
  }
}

run "containers_may_do_little" {
  command = plan

  assert {
    condition = alltrue([
      for process in local.processes : alltrue([
        local.containers[process].readonlyRootFilesystem,
        !contains(keys(local.containers[process]), "privileged"),
        local.containers[process].user == "10001:10001",
        local.containers[process].linuxParameters.capabilities.drop == ["ALL"],
        local.containers[process].linuxParameters.initProcessEnabled,
        [for one in local.containers[process].mountPoints : one.containerPath] == ["/var/lib/kiseki"],
        local.environment[process]["TMPDIR"] == "/var/lib/kiseki",
      ])
    ])
    error_message = "No process is root, has a capability, or writes anywhere but in its one folder."
  }

  assert {
    condition     = alltrue([for process in local.processes : local.containers[process].image == var.image])
    error_message = "The image is named by its digest."
  }

  assert {
    condition     = alltrue([for one in aws_ecs_task_definition.this : one.tags["kiseki-template"] == "true" && one.skip_destroy])
    error_message = "A release finds the template by its tag, and what runs stays registered."
  }
}

run "the_containers_are_those_of_the_task_definitions" {
  command = apply

  assert {
    condition = alltrue([
      for process, one in aws_ecs_task_definition.this :
      jsondecode(one.container_definitions)[0].command[0] == (process == "backup" ? "backup" : process) &&
      length(jsondecode(one.container_definitions)) == 1
    ])
    error_message = "Each task has one container, which runs its process."
  }

  assert {
    condition = alltrue([
      for process, one in aws_ecs_task_definition.this :
      jsondecode(one.container_definitions)[0].stopTimeout == 120 &&
      contains(jsondecode(one.container_definitions)[0].environment, { name = "KISEKI_TERMINATION_GRACE", value = "120" })
    ])
    error_message = "The process is told what the platform gives it to end."
  }

  assert {
    condition = [
      for one in jsondecode(aws_ecs_task_definition.this["command-api"].container_definitions)[0].portMappings : one.containerPort
    ] == [18080, 8558]
    error_message = "An API listens on its port and on the management port."
  }

  assert {
    condition = [
      for one in jsondecode(aws_ecs_task_definition.this["updater"].container_definitions)[0].portMappings : one.containerPort
    ] == [8558]
    error_message = "The updater has a management port alone."
  }

  assert {
    condition = alltrue([
      for process in local.services :
      jsondecode(aws_ecs_task_definition.this[process].container_definitions)[0].logConfiguration.options["mode"] == "non-blocking" &&
      strcontains(jsondecode(aws_ecs_task_definition.this[process].container_definitions)[0].healthCheck.command[3], ":8558/alive")
    ])
    error_message = "A service never waits for its log, and is asked whether it is stuck."
  }

  assert {
    condition = alltrue([
      for process in ["migrate", "backup"] :
      jsondecode(aws_ecs_task_definition.this[process].container_definitions)[0].logConfiguration.options["mode"] == "blocking"
    ])
    error_message = "What a task says is not lost."
  }

  assert {
    condition     = output.environment["command-api"]["KISEKI_MANAGEMENT_HOST"] == "0.0.0.0" && output.environment["command-api"]["KISEKI_AUDIT_KEY"] == "aws-sm://shop-test/audit#value"
    error_message = "The load balancer can ask for health, and secrets are references."
  }
}

run "apis_are_replaced_by_ecs" {
  command = plan

  assert {
    condition = alltrue([
      for one in aws_ecs_service.api : alltrue([
        one.deployment_controller[0].type == "ECS",
        one.deployment_configuration[0].strategy == "BLUE_GREEN",
        tonumber(one.deployment_configuration[0].bake_time_in_minutes) == 10,
        length(one.deployment_configuration[0].canary_configuration) == 0,
        one.deployment_circuit_breaker[0].enable && one.deployment_circuit_breaker[0].rollback,
        one.availability_zone_rebalancing == "ENABLED",
        !one.enable_execute_command,
        !one.network_configuration[0].assign_public_ip,
      ])
    ])
    error_message = "ECS switches between blue and green, and back when it fails."
  }

  assert {
    condition = alltrue([
      for api, one in aws_ecs_service.api : alltrue([
        for balancer in one.load_balancer : alltrue([
          balancer.target_group_arn == var.load_balancing[api].target_group_arn,
          balancer.container_port == { command-api = 18080, query-api = 18082 }[api],
          balancer.advanced_configuration[0].alternate_target_group_arn == var.load_balancing[api].alternate_target_group_arn,
          balancer.advanced_configuration[0].production_listener_rule == var.load_balancing[api].production_rule_arn,
          balancer.advanced_configuration[0].test_listener_rule == var.load_balancing[api].test_rule_arn,
          balancer.advanced_configuration[0].role_arn == var.infrastructure_role_arn,
        ])
      ])
    ])
    error_message = "Each API has its own two sides and rules."
  }

  assert {
    condition     = aws_ecs_service.updater[0].deployment_configuration[0].strategy == "ROLLING" && aws_ecs_service.updater[0].desired_count == 2 && aws_ecs_service.updater[0].deployment_minimum_healthy_percent == 100
    error_message = "A new updater stands by before an old one ends."
  }
}

run "a_canary_comes_first_when_asked_for" {
  command = plan

  variables {
    deployment = {
      strategy = "CANARY"
      hooks = [{
        function_arn = "arn:aws:lambda:eu-central-1:123456789012:function:smoke-test"
        role_arn     = "arn:aws:iam::123456789012:role/hook"
        stages       = ["POST_TEST_TRAFFIC_SHIFT"]
      }]
    }
    deployment_alarm_names = { command-api = ["shop-test-command-api-errors"] }
  }

  assert {
    condition     = tonumber(aws_ecs_service.api["command-api"].deployment_configuration[0].canary_configuration[0].canary_percent) == 10
    error_message = "A tenth goes first."
  }

  assert {
    condition     = one(aws_ecs_service.api["query-api"].deployment_configuration[0].lifecycle_hook).lifecycle_stages == tolist(["POST_TEST_TRAFFIC_SHIFT"])
    error_message = "The smoke test is asked before anybody else's requests go over."
  }

  assert {
    condition     = contains(aws_ecs_service.api["command-api"].alarms[0].alarm_names, "shop-test-command-api-errors") && aws_ecs_service.api["command-api"].alarms[0].rollback && length(aws_ecs_service.api["query-api"].alarms) == 0
    error_message = "An alarm rolls back the service that it is of."
  }
}

run "apis_grow_and_shrink" {
  command = plan

  assert {
    condition = alltrue([
      for api, one in aws_appautoscaling_target.api :
      one.min_capacity == 3 && one.max_capacity == 20 && one.resource_id == "service/shop-test/${api}"
    ])
    error_message = "There are 3 to 20 tasks of an API."
  }

  assert {
    condition = alltrue([
      for one in aws_appautoscaling_policy.cpu : alltrue([
        for policy in one.target_tracking_scaling_policy_configuration :
        policy.target_value == 70 && policy.scale_out_cooldown == 60 && policy.scale_in_cooldown == 300
      ])
    ])
    error_message = "They are kept at 70 % of CPU; more after a minute, fewer after five."
  }
}

run "what_is_done_by_the_clock" {
  command = plan

  assert {
    condition     = toset(keys(aws_scheduler_schedule.this)) == toset(["audit", "create", "journal", "prune", "status"])
    error_message = "Backups are made, removed and watched."
  }

  assert {
    condition = (
      jsondecode(aws_scheduler_schedule.this["status"].target[0].input).containerOverrides[0].command == ["dr", "status", "--embedded-metrics"] &&
      aws_scheduler_schedule.this["status"].schedule_expression == "rate(1 hour)"
    )
    error_message = "Every hour the ages of backups become metrics."
  }

  assert {
    condition     = length(aws_cloudwatch_event_target.failure) == 0
    error_message = "Without a topic nobody is told."
  }
}

run "failures_are_told" {
  command = apply

  variables {
    alarm_topic_arns = { operators = "arn:aws:sns:eu-central-1:123456789012:shop-test" }
  }

  assert {
    condition     = toset(keys(aws_cloudwatch_event_target.failure)) == toset(["tasks/operators", "deployments/operators"])
    error_message = "Tasks and deployments that failed are told."
  }

  assert {
    condition     = toset(jsondecode(aws_cloudwatch_event_rule.failure["tasks"].event_pattern).detail.group) == toset(["family:shop-test-migrate", "shop-test-audit", "shop-test-create", "shop-test-journal", "shop-test-prune"])
    error_message = "A status that says LOOK has alarms of its own, and does not call every hour."
  }

  assert {
    condition     = alltrue([for name, one in aws_scheduler_schedule.this : one.target[0].ecs_parameters[0].group == "shop-test-${name}"])
    error_message = "The group of a task says which schedule it is of."
  }

  assert {
    condition     = local.families["backup"] == "shop-test-backup" && strcontains(aws_cloudwatch_event_rule.failure["deployments"].event_pattern, "service/shop-test/command-api")
    error_message = "Only what is of this environment is told."
  }
}

run "who_reaches_whom" {
  command = plan

  assert {
    condition     = alltrue([for rule in values(aws_vpc_security_group_ingress_rule.api) : rule.referenced_security_group_id == "sg-balancer" && rule.from_port == rule.to_port])
    error_message = "Only the load balancer reaches the APIs."
  }

  assert {
    condition     = length(aws_vpc_security_group_egress_rule.internet) == 0 && length(aws_vpc_security_group_ingress_rule.collector) == 0
    error_message = "Nobody is let out to the internet, or into the management port, unless told."
  }

  assert {
    condition     = toset(keys(aws_vpc_security_group_egress_rule.rate_store)) == toset(["command-api", "query-api"])
    error_message = "Only the APIs count requests."
  }

  assert {
    condition     = toset(keys(aws_security_group.process)) == toset(["command-api", "query-api", "updater", "updater-function", "migrate", "backup"])
    error_message = "Each process has a security group, the function too."
  }
}

run "an_image_by_its_tag_is_refused" {
  command = plan

  variables {
    image = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/shop-test:latest"
  }

  expect_failures = [var.image]
}

run "a_process_without_environment_is_refused" {
  command = plan

  variables {
    environment = { command-api = {}, query-api = {}, updater = {}, migrate = {} }
  }

  expect_failures = [var.environment]
}

run "static_keys_are_refused" {
  command = plan

  variables {
    environment = { command-api = { AWS_SECRET_ACCESS_KEY = "x" }, query-api = {}, updater = {}, migrate = {}, backup = {} }
  }

  expect_failures = [var.environment]
}

run "a_size_that_fargate_has_not_is_refused" {
  command = plan

  variables {
    sizes = {
      command-api = { cpu = 1024, memory = 1024 }
      query-api   = { cpu = 1024, memory = 2048 }
      updater     = { cpu = 1024, memory = 2048 }
      migrate     = { cpu = 512, memory = 1024 }
      backup      = { cpu = 1024, memory = 4096 }
    }
  }

  expect_failures = [var.sizes]
}

run "more_updaters_than_can_work_are_refused" {
  command = plan

  variables {
    updater_tasks = 3
  }

  expect_failures = [var.updater_tasks]
}

run "a_grace_that_fargate_does_not_give_is_refused" {
  command = plan

  variables {
    termination_grace = 180
  }

  expect_failures = [var.termination_grace]
}

run "copies_that_nobody_removes_are_refused" {
  command = plan

  variables {
    schedules = { create = { command = ["backup", "create"], expression = "rate(1 day)" } }
  }

  expect_failures = [var.schedules]
}

run "a_stage_that_ecs_has_not_is_refused" {
  command = plan

  variables {
    deployment = {
      hooks = [{
        function_arn = "arn:aws:lambda:eu-central-1:123456789012:function:smoke-test"
        role_arn     = "arn:aws:iam::123456789012:role/hook"
        stages       = ["AFTER_ALLOW_TEST_TRAFFIC"]
      }]
    }
  }

  expect_failures = [var.deployment]
}
