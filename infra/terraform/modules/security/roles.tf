# The roles. Each can be taken by one service of AWS, for this account alone, or by the people who are named.

locals {
  role_names = { for process in local.processes : process => "${var.name}-${process}" }

  trusted = { for process in local.processes : process => process == "updater-function" ? "lambda" : "ecs-tasks" }

  of_this_account = {
    StringEquals = { "aws:SourceAccount" = var.account_id }
    ArnLike      = { "aws:SourceArn" = "${local.arn}:ecs:${local.place}:${var.account_id}:*" }
  }
  # AWS promises of these services nowhere that they say for whom they take a role, and without it they could not.
  of_this_account_if_said = { StringEqualsIfExists = { "aws:SourceAccount" = var.account_id } }

  ecs = "${local.arn}:ecs:${var.region}:${var.account_id}"
  # A restore, say, is the task of the backup with the operator's role and another command.
  operated_families = [for process in ["backup", "migrate"] : "${local.ecs}:task-definition/${var.name}-${process}:*"]

  operating = {
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "RunTasks"
        Effect    = "Allow"
        Action    = ["ecs:RunTask"]
        Resource  = local.operated_families
        Condition = { ArnEquals = { "ecs:cluster" = "${local.ecs}:cluster/${local.cluster_name}" } }
      },
      {
        Sid       = "TagTasks"
        Effect    = "Allow"
        Action    = ["ecs:TagResource"]
        Resource  = "${local.ecs}:task/${local.cluster_name}/*"
        Condition = { StringEquals = { "ecs:CreateAction" = "RunTask" } }
      },
      {
        Sid    = "PassRoles"
        Effect = "Allow"
        Action = ["iam:PassRole"]
        Resource = concat(
          [aws_iam_role.process["operator"].arn, aws_iam_role.process["migrate"].arn],
          [for process in ["backup", "migrate"] : aws_iam_role.execution[process].arn],
        )
        Condition = { StringEquals = { "iam:PassedToService" = "ecs-tasks.amazonaws.com" } }
      },
      {
        Sid       = "WatchTasks"
        Effect    = "Allow"
        Action    = ["ecs:DescribeTasks", "ecs:StopTask"]
        Resource  = "${local.ecs}:task/${local.cluster_name}/*"
        Condition = { ArnEquals = { "ecs:cluster" = "${local.ecs}:cluster/${local.cluster_name}" } }
      },
      # Before a restore the processes are stopped, and after it they are started anew.
      {
        Sid      = "StopAndStartServices"
        Effect   = "Allow"
        Action   = ["ecs:DescribeServices", "ecs:UpdateService"]
        Resource = "${local.ecs}:service/${local.cluster_name}/*"
      },
      # For `kiseki scale show`.
      {
        Sid    = "LookAtScaling"
        Effect = "Allow"
        Action = [
          "application-autoscaling:DescribeScalableTargets", "application-autoscaling:DescribeScalingPolicies",
          "rds:DescribeDBInstances", "rds:DescribeDBParameters",
        ]
        Resource = "*"
      },
      {
        Sid      = "LookAtTables"
        Effect   = "Allow"
        Action   = ["dynamodb:DescribeTable"]
        Resource = local.described_tables
      },
      {
        Sid      = "ReadLogs"
        Effect   = "Allow"
        Action   = ["logs:FilterLogEvents", "logs:GetLogEvents", "logs:StartLiveTail"]
        Resource = flatten([for process in ["backup", "migrate"] : [for arn in local.log_arns[process] : [trimsuffix(arn, ":*"), arn]]])
      },
    ]
  }
}

resource "aws_iam_role" "process" {
  for_each = local.processes

  name        = local.role_names[each.key]
  description = "What the process ${each.key} of ${var.name} may do."

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "Service"
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "${local.trusted[each.key]}.amazonaws.com" }
      Condition = local.trusted[each.key] == "lambda" ? local.of_this_account_if_said : local.of_this_account
    }]
  })

  tags = merge(var.tags, { Name = local.role_names[each.key] })
}

resource "aws_iam_role_policy" "process" {
  for_each = local.processes

  name   = "actions"
  role   = aws_iam_role.process[each.key].id
  policy = local.written[each.key]

  lifecycle {
    precondition {
      condition     = length(local.written[each.key]) <= 10240
      error_message = "AWS takes at most 10,240 characters for the policy of a role."
    }
  }
}

resource "aws_iam_policy" "operator" {
  name        = "${local.role_names.operator}-more"
  description = "What the process operator of ${var.name} may do besides: the policy of its role is too short for all of it."
  policy      = local.second_half

  tags = merge(var.tags, { Name = "${local.role_names.operator}-more" })

  lifecycle {
    precondition {
      condition     = length(local.second_half) <= 6144
      error_message = "AWS takes at most 6,144 characters for a policy."
    }
  }
}

resource "aws_iam_role_policy_attachment" "operator" {
  role       = aws_iam_role.process["operator"].name
  policy_arn = aws_iam_policy.operator.arn
}

resource "aws_iam_role" "execution" {
  for_each = toset(local.tasks)

  name        = "${var.name}-${each.key}-start"
  description = "With it ECS starts the process ${each.key} of ${var.name}: image and log."

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "Service"
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ecs-tasks.amazonaws.com" }
      Condition = local.of_this_account
    }]
  })

  tags = merge(var.tags, { Name = "${var.name}-${each.key}-start" })
}

resource "aws_iam_role_policy" "execution" {
  for_each = toset(local.tasks)

  name = "actions"
  role = aws_iam_role.execution[each.key].id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid      = "LogInToRepository"
        Effect   = "Allow"
        Action   = ["ecr:GetAuthorizationToken"]
        Resource = "*"
      },
      {
        Sid      = "PullImage"
        Effect   = "Allow"
        Action   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
        Resource = local.repositories
      },
      {
        Sid      = "Log"
        Effect   = "Allow"
        Action   = ["logs:CreateLogStream", "logs:PutLogEvents"]
        Resource = local.log_arns[each.key]
      },
    ]
  })
}

# Of what AWS's managed policy for this (AmazonECSInfrastructureRolePolicyForLoadBalancers) allows on every load balancer
# of the account, the part for ours.
resource "aws_iam_role" "infrastructure" {
  name        = "${var.name}-deploy"
  description = "With it ECS switches the load balancer of ${var.name} between blue and green."

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "Service"
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ecs.amazonaws.com" }
      Condition = local.of_this_account_if_said
    }]
  })

  tags = merge(var.tags, { Name = "${var.name}-deploy" })
}

resource "aws_iam_role_policy" "infrastructure" {
  name = "actions"
  role = aws_iam_role.infrastructure.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid    = "Look"
        Effect = "Allow"
        Action = [
          "elasticloadbalancing:DescribeListeners", "elasticloadbalancing:DescribeRules",
          "elasticloadbalancing:DescribeTargetGroups", "elasticloadbalancing:DescribeTargetHealth",
        ]
        Resource = "*"
      },
      {
        Sid      = "Targets"
        Effect   = "Allow"
        Action   = ["elasticloadbalancing:DeregisterTargets", "elasticloadbalancing:RegisterTargets"]
        Resource = "${local.arn}:elasticloadbalancing:${local.place}:${var.account_id}:targetgroup/${local.target_group_prefix}*/*"
      },
      {
        Sid    = "Switch"
        Effect = "Allow"
        Action = ["elasticloadbalancing:ModifyListener", "elasticloadbalancing:ModifyRule"]
        Resource = [
          for kind, depth in { listener = "*", listener-rule = "*/*" } :
          "${local.arn}:elasticloadbalancing:${local.place}:${var.account_id}:${kind}/app/${local.load_balancer_name}/*/${depth}"
        ]
      },
    ]
  })
}

resource "aws_iam_role" "scheduler" {
  name        = "${var.name}-schedule"
  description = "With it EventBridge Scheduler starts the backups of ${var.name}."

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "Service"
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "scheduler.amazonaws.com" }
      Condition = { StringEquals = { "aws:SourceAccount" = var.account_id } }
    }]
  })

  tags = merge(var.tags, { Name = "${var.name}-schedule" })
}

resource "aws_iam_role_policy" "scheduler" {
  name = "actions"
  role = aws_iam_role.scheduler.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "RunBackup"
        Effect    = "Allow"
        Action    = ["ecs:RunTask"]
        Resource  = "${local.ecs}:task-definition/${var.name}-backup:*"
        Condition = { ArnEquals = { "ecs:cluster" = "${local.ecs}:cluster/${local.cluster_name}" } }
      },
      {
        Sid       = "TagTasks"
        Effect    = "Allow"
        Action    = ["ecs:TagResource"]
        Resource  = "${local.ecs}:task/${local.cluster_name}/*"
        Condition = { StringEquals = { "ecs:CreateAction" = "RunTask" } }
      },
      {
        Sid       = "PassRoles"
        Effect    = "Allow"
        Action    = ["iam:PassRole"]
        Resource  = [aws_iam_role.process["backup"].arn, aws_iam_role.execution["backup"].arn]
        Condition = { StringEquals = { "iam:PassedToService" = "ecs-tasks.amazonaws.com" } }
      },
      # What a schedule says is encrypted.
      {
        Sid       = "ReadSchedules"
        Effect    = "Allow"
        Action    = ["kms:Decrypt"]
        Resource  = aws_kms_key.data.arn
        Condition = { StringEquals = { "kms:ViaService" = "scheduler.${var.region}.${local.suffix}" } }
      },
    ]
  })
}

resource "aws_iam_role" "operators" {
  count = length(var.operator_principals) == 0 ? 0 : 1

  name                 = "${var.name}-operators"
  description          = "People take it to stop, restore and start ${var.name}."
  max_session_duration = 3600

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "People"
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { AWS = var.operator_principals }
      Condition = var.operators_need_mfa ? { Bool = { "aws:MultiFactorAuthPresent" = "true" } } : {}
    }]
  })

  tags = merge(var.tags, { Name = "${var.name}-operators" })
}

resource "aws_iam_role_policy" "operators" {
  count = length(var.operator_principals) == 0 ? 0 : 1

  name   = "actions"
  role   = aws_iam_role.operators[0].id
  policy = jsonencode(local.operating)
}
