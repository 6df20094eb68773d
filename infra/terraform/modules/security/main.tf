# Who may do what: the KMS keys, the places of secrets, and one role for each process with the actions and resources that
# it uses. Used by the system; `policies` is what the test of the roles reads.
#
# ARNs of tables, secrets, logs and buckets are made of their names, so that the modules which make these can be given
# keys and roles of here.

locals {
  arn     = "arn:${var.partition}"
  account = "${local.arn}:iam::${var.account_id}:root"
  suffix  = var.partition == "aws-cn" ? "amazonaws.com.cn" : "amazonaws.com"
  regions = concat([var.region], sort(tolist(var.replica_regions)))

  repository_name     = coalesce(var.repository_name, var.name)
  cluster_name        = coalesce(var.cluster_name, var.name)
  function_name       = coalesce(var.function_name, "${var.name}-updater")
  load_balancer_name  = coalesce(var.load_balancer_name, var.name)
  target_group_prefix = coalesce(var.target_group_prefix, "${var.name}-")
  log_group_prefix    = coalesce(var.log_group_prefix, "/${var.name}/")

  tasks     = ["command-api", "query-api", "updater", "migrate", "backup"]
  processes = toset(concat(local.tasks, ["operator", "updater-function"]))

  log_groups = { for process in setsubtract(local.processes, ["operator"]) : process => "${local.log_group_prefix}${process}" }
}
