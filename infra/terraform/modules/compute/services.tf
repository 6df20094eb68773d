# What always runs, and how it is replaced.

locals {
  # A new task waits for its databases, and looks for erasures that a restore undid, before it is ready.
  start_grace = 120
}

resource "aws_ecs_service" "api" {
  for_each = local.running ? local.api_ports : {}

  name            = local.service_names[each.key]
  cluster         = aws_ecs_cluster.this.arn
  task_definition = aws_ecs_task_definition.this[each.key].arn
  desired_count   = var.scaling[each.key].minimum

  platform_version                  = "LATEST"
  availability_zone_rebalancing     = "ENABLED"
  enable_execute_command            = false
  enable_ecs_managed_tags           = true
  propagate_tags                    = "SERVICE"
  health_check_grace_period_seconds = local.start_grace

  # The command line follows deployments and says how they end.
  wait_for_steady_state = false

  capacity_provider_strategy {
    capacity_provider = contains(var.spot, each.key) ? "FARGATE_SPOT" : "FARGATE"
    weight            = 1
  }

  network_configuration {
    subnets          = var.subnet_ids
    security_groups  = [aws_security_group.process[each.key].id]
    assign_public_ip = false
  }

  load_balancer {
    container_name   = local.container
    container_port   = each.value
    target_group_arn = var.load_balancing[each.key].target_group_arn

    advanced_configuration {
      alternate_target_group_arn = var.load_balancing[each.key].alternate_target_group_arn
      production_listener_rule   = var.load_balancing[each.key].production_rule_arn
      test_listener_rule         = var.load_balancing[each.key].test_rule_arn
      role_arn                   = var.infrastructure_role_arn
    }
  }

  deployment_controller {
    type = "ECS"
  }

  deployment_minimum_healthy_percent = 100
  deployment_maximum_percent         = 200

  deployment_configuration {
    strategy             = var.deployment.strategy
    bake_time_in_minutes = var.deployment.bake_minutes

    dynamic "canary_configuration" {
      for_each = var.deployment.strategy == "CANARY" ? [var.deployment.canary] : []

      content {
        canary_percent              = canary_configuration.value.percent
        canary_bake_time_in_minutes = canary_configuration.value.bake_minutes
      }
    }

    dynamic "linear_configuration" {
      for_each = var.deployment.strategy == "LINEAR" ? [var.deployment.linear] : []

      content {
        step_percent              = linear_configuration.value.percent
        step_bake_time_in_minutes = linear_configuration.value.bake_minutes
      }
    }

    dynamic "lifecycle_hook" {
      for_each = var.deployment.hooks

      content {
        hook_target_arn  = lifecycle_hook.value.function_arn
        role_arn         = lifecycle_hook.value.role_arn
        lifecycle_stages = lifecycle_hook.value.stages
      }
    }
  }

  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }

  dynamic "alarms" {
    for_each = length(lookup(var.deployment_alarm_names, each.key, [])) > 0 ? [var.deployment_alarm_names[each.key]] : []

    content {
      alarm_names = alarms.value
      enable      = true
      rollback    = true
    }
  }

  tags = merge(var.tags, { process = each.key })

  # A release changes the one, the load the other. ECS keeps the load balancer's part as it is given here: what it moves
  # are the weights of the listener rules.
  lifecycle {
    ignore_changes = [task_definition, desired_count]
  }

  depends_on = [
    aws_ecs_cluster_capacity_providers.this,
    aws_vpc_security_group_ingress_rule.api,
    aws_vpc_security_group_ingress_rule.health,
    aws_vpc_security_group_egress_rule.health,
  ]
}

# Each projection is run by one updater at a time, so a new task waits beside the old ones, and takes over what they let
# go when they end.
resource "aws_ecs_service" "updater" {
  count = local.running ? 1 : 0

  name            = local.service_names.updater
  cluster         = aws_ecs_cluster.this.arn
  task_definition = aws_ecs_task_definition.this["updater"].arn
  desired_count   = var.updater_tasks

  platform_version              = "LATEST"
  availability_zone_rebalancing = "ENABLED"
  enable_execute_command        = false
  enable_ecs_managed_tags       = true
  propagate_tags                = "SERVICE"
  wait_for_steady_state         = false

  capacity_provider_strategy {
    capacity_provider = contains(var.spot, "updater") ? "FARGATE_SPOT" : "FARGATE"
    weight            = 1
  }

  network_configuration {
    subnets          = var.subnet_ids
    security_groups  = [aws_security_group.process["updater"].id]
    assign_public_ip = false
  }

  deployment_controller {
    type = "ECS"
  }

  deployment_minimum_healthy_percent = 100
  deployment_maximum_percent         = 200

  deployment_configuration {
    strategy = "ROLLING"
  }

  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }

  dynamic "alarms" {
    for_each = length(lookup(var.deployment_alarm_names, "updater", [])) > 0 ? [var.deployment_alarm_names.updater] : []

    content {
      alarm_names = alarms.value
      enable      = true
      rollback    = true
    }
  }

  tags = merge(var.tags, { process = "updater" })

  # How many there are does not depend on the load, so only the image is a release's.
  lifecycle {
    ignore_changes = [task_definition]
  }

  depends_on = [aws_ecs_cluster_capacity_providers.this]
}

resource "aws_appautoscaling_target" "api" {
  for_each = aws_ecs_service.api

  service_namespace  = "ecs"
  resource_id        = "service/${aws_ecs_cluster.this.name}/${each.value.name}"
  scalable_dimension = "ecs:service:DesiredCount"
  min_capacity       = var.scaling[each.key].minimum
  max_capacity       = var.scaling[each.key].maximum
  tags               = var.tags
}

resource "aws_appautoscaling_policy" "cpu" {
  for_each = aws_appautoscaling_target.api

  name               = "${local.families[each.key]}-cpu"
  policy_type        = "TargetTrackingScaling"
  service_namespace  = each.value.service_namespace
  resource_id        = each.value.resource_id
  scalable_dimension = each.value.scalable_dimension

  target_tracking_scaling_policy_configuration {
    target_value       = var.scaling_target.cpu
    scale_out_cooldown = var.scaling_target.scale_out_cooldown
    scale_in_cooldown  = var.scaling_target.scale_in_cooldown

    predefined_metric_specification {
      predefined_metric_type = "ECSServiceAverageCPUUtilization"
    }
  }
}
