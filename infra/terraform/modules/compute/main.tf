# What runs: the cluster, the repository of the image, a task definition for each process, the services of both APIs and
# of the updater, and what is done by the clock. Used by the system.
#
# The infrastructure owns all of it but the image. A task definition that is made here is a template, which its tag says:
# a release takes the newest template of a family, puts the digest of its image in, registers that, and gives it to the
# service or the schedule. So a change of the environment or of a size reaches what runs with the next release, the same
# image again if need be; and nothing that is applied here ever starts another image than the one that was released.

locals {
  services  = toset(["command-api", "query-api", "updater"])
  processes = toset(["command-api", "query-api", "updater", "migrate", "backup"])

  # Sizes of tasks that Fargate has: units of CPU, and the MiB of memory that go with them.
  fargate_memory = {
    "256"  = [512, 1024, 2048]
    "512"  = range(1024, 4097, 1024)
    "1024" = range(2048, 8193, 1024)
    "2048" = range(4096, 16385, 1024)
    "4096" = range(8192, 30721, 1024)
  }

  api_ports = { command-api = var.ports.command, query-api = var.ports.query }

  families         = { for process in local.processes : process => "${var.name}-${process}" }
  service_names    = { for process in local.services : process => process }
  log_group_prefix = coalesce(var.log_group_prefix, "/${var.name}/")
  defined          = var.image == null ? toset([]) : local.processes
  running          = var.start_services && var.image != null
}

resource "aws_ecs_cluster" "this" {
  name = var.name

  setting {
    name  = "containerInsights"
    value = "enabled"
  }

  # No service lets anybody into its containers. Should one be made to, then what is done there is written down.
  configuration {
    execute_command_configuration {
      kms_key_id = var.kms_key_arn
      logging    = "OVERRIDE"

      log_configuration {
        cloud_watch_encryption_enabled = true
        cloud_watch_log_group_name     = aws_cloudwatch_log_group.exec.name
      }
    }

    dynamic "managed_storage_configuration" {
      for_each = var.storage_kms_key_arn == null ? [] : [var.storage_kms_key_arn]

      content {
        fargate_ephemeral_storage_kms_key_id = managed_storage_configuration.value
      }
    }
  }

  tags = var.tags
}

resource "aws_ecs_cluster_capacity_providers" "this" {
  cluster_name       = aws_ecs_cluster.this.name
  capacity_providers = ["FARGATE", "FARGATE_SPOT"]

  default_capacity_provider_strategy {
    capacity_provider = "FARGATE"
    weight            = 1
  }
}

resource "aws_cloudwatch_log_group" "process" {
  for_each = local.processes

  name              = "${local.log_group_prefix}${each.key}"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.kms_key_arn
  tags              = merge(var.tags, { process = each.key })
}

resource "aws_cloudwatch_log_group" "exec" {
  name              = "${local.log_group_prefix}exec"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.kms_key_arn
  tags              = var.tags
}
