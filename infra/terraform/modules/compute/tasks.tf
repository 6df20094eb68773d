# The task definition of each process.

locals {
  container = "kiseki"
  data_dir  = "/var/lib/kiseki"

  # The one folder that is written. The image declares it as a volume, so that it comes with its owner: another one, such
  # as /tmp, would be root's on Fargate. All else is read-only.
  volumes = { data = local.data_dir }

  # `backup` gets its arguments from each schedule. Without any it says what there is.
  application = var.application == null ? [] : ["--app", var.application]
  commands = {
    command-api = concat(["command-api"], local.application)
    query-api   = concat(["query-api"], local.application)
    updater     = concat(["updater"], local.application)
    migrate     = ["migrate"]
    backup      = ["backup", "list"]
  }

  # What depends on how the task is made is said here and nowhere else.
  of_all_tasks = {
    TMPDIR                   = local.data_dir
    KISEKI_DATA_DIR          = local.data_dir
    KISEKI_TERMINATION_GRACE = tostring(var.termination_grace)
  }
  of_services = {
    KISEKI_HOST            = "0.0.0.0"
    KISEKI_MANAGEMENT_HOST = "0.0.0.0"
    KISEKI_COMMAND_PORT    = tostring(var.ports.command)
    KISEKI_QUERY_PORT      = tostring(var.ports.query)
    KISEKI_MANAGEMENT_PORT = tostring(var.ports.management)
  }
  environment = {
    for process in local.processes : process => merge(
      var.environment[process],
      local.of_all_tasks,
      contains(local.services, process) ? local.of_services : {},
    )
  }

  listens = {
    for process in local.services : process => concat(
      [for port in compact([try(tostring(local.api_ports[process]), "")]) : { name = "api", port = tonumber(port) }],
      [{ name = "management", port = var.ports.management }],
    )
  }

  # Whether the process is stuck, not whether its databases answer: those do not get better by a new task.
  health_check = {
    command = [
      "CMD", "python", "-c",
      "import urllib.request as r; r.urlopen('http://127.0.0.1:${var.ports.management}/alive', timeout=4)",
    ]
    interval    = 15
    timeout     = 5
    retries     = 3
    startPeriod = 60
  }

  log_options = {
    for process in local.processes : process => merge(
      {
        "awslogs-group"         = aws_cloudwatch_log_group.process[process].name
        "awslogs-region"        = var.region
        "awslogs-stream-prefix" = process
      },
      # A service writes to its standard output from where it answers requests: if that had to wait for CloudWatch, an
      # outage there would be one here. What a full buffer loses is a copy: the audit log that is verified, and without
      # which nothing is done, is in the database. A task that somebody reads afterwards waits instead.
      contains(local.services, process)
      ? { "mode" = "non-blocking", "max-buffer-size" = "25m" }
      : { "mode" = "blocking" },
    )
  }

  containers = {
    for process in local.processes : process => merge(
      {
        name                   = local.container
        image                  = var.image
        essential              = true
        command                = local.commands[process]
        user                   = "10001:10001"
        readonlyRootFilesystem = true
        stopTimeout            = var.termination_grace

        linuxParameters = {
          initProcessEnabled = true
          capabilities       = { drop = ["ALL"] }
        }

        ulimits = [{ name = "nofile", softLimit = 65535, hardLimit = 65535 }]

        environment = [
          for variable, value in local.environment[process] : { name = variable, value = value }
        ]

        mountPoints = [
          for volume, path in local.volumes : { sourceVolume = volume, containerPath = path, readOnly = false }
        ]

        portMappings = [
          for one in lookup(local.listens, process, []) :
          { name = one.name, containerPort = one.port, hostPort = one.port, protocol = "tcp" }
        ]

        logConfiguration = { logDriver = "awslogs", options = local.log_options[process] }

        # Written out, as ECS gives them back: else every plan would show a change.
        systemControls = []
        volumesFrom    = []
      },
      contains(local.services, process) ? { healthCheck = local.health_check } : null,
    )
  }
}

resource "aws_ecs_task_definition" "this" {
  #checkov:skip=CKV_AWS_249: they are two roles, of two variables; the check sees that both are looked up by the same name
  for_each = local.defined

  family                   = local.families[each.key]
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = var.sizes[each.key].cpu
  memory                   = var.sizes[each.key].memory
  task_role_arn            = var.task_role_arns[each.key]
  execution_role_arn       = var.execution_role_arns[each.key]
  container_definitions    = jsonencode([local.containers[each.key]])

  runtime_platform {
    operating_system_family = "LINUX"
    cpu_architecture        = var.architecture
  }

  dynamic "volume" {
    for_each = local.volumes

    content {
      name = volume.key
    }
  }

  dynamic "ephemeral_storage" {
    for_each = var.sizes[each.key].storage > 20 ? [var.sizes[each.key].storage] : []

    content {
      size_in_gib = ephemeral_storage.value
    }
  }

  # An earlier one may be what runs, or what is rolled back to.
  skip_destroy = true
  # The newest of a family is mostly one of a release, which is not the infrastructure's.
  track_latest = false

  tags = merge(var.tags, { process = each.key, kiseki-template = "true" })
}
