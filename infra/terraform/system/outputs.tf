output "name" {
  description = "What everything of this system is named by; also the prefix of its tables."
  value       = local.name
}

output "settings" {
  description = "The settings of each process (KISEKI_…), with what the modules add: what the settings file of an environment is written from. No secret is in them, only references."
  value       = merge(module.compute.environment, { updater-function = local.settings["updater-function"] })
}

output "urls" {
  description = "The URL of each API."
  value       = module.edge.urls
}

output "test_urls" {
  description = "The URL of each API through the test listener."
  value       = module.edge.test_urls
}

output "load_balancer_dns_name" {
  description = "What commands.DOMAIN and queries.DOMAIN have to lead to where DNS is kept elsewhere."
  value       = module.edge.dns_name
}

output "repository_url" {
  description = "Where the image is pushed to."
  value       = module.compute.repository_url
}

output "cluster_name" {
  description = "The ECS cluster."
  value       = module.compute.cluster_name
}

output "service_names" {
  description = "The ECS service of each process."
  value       = module.compute.service_names
}

output "task_families" {
  description = "The family of task definitions of each process."
  value       = module.compute.task_families
}

output "task_network" {
  description = "What `aws ecs run-task --network-configuration` needs, by process."
  value = {
    for process in ["migrate", "backup"] : process => jsonencode({
      awsvpcConfiguration = {
        subnets        = module.network.private_subnet_ids
        securityGroups = [module.compute.security_group_ids[process]]
        assignPublicIp = "DISABLED"
      }
    })
  }
}

output "role_arns" {
  description = "The role of each process; `operator` is the one that a one-off task is given for what only people do."
  value       = module.security.role_arns
}

output "operators_role_arn" {
  description = "The role that people take to run one-off tasks; null without operator_principals."
  value       = module.security.operators_role_arn
}

output "secret_names" {
  description = "The secrets whose values are put in by hand: audit and, without jwks_url, token. rate-store gets its own."
  value       = module.security.secret_names
}

output "database" {
  description = "The PostgreSQL server: its name, its instance, what `kiseki scale plan --limit` is given, and the URL of its administrator, for `kiseki database prepare --admin`."
  value = {
    host      = module.read_model.host
    port      = module.read_model.port
    instance  = module.read_model.instance_id
    limit     = module.read_model.scale_limit
    admin_url = module.read_model.admin_url
  }
}

output "tables" {
  description = "The tables, by their names in the code."
  value       = module.journal.table_names
}

output "scaling" {
  description = "How many tasks each service may have, and how many environments the function (lambda), for `kiseki scale plan --tasks`."
  value = merge(module.compute.tasks, {
    lambda = { minimum = 0, maximum = module.updater.reserved_concurrency }
  })
}

output "function" {
  description = "The Lambda updater: its name, its alias, its mapping, the bucket of its packages, that of records which it gave up, and the alarms that bring back its last version."
  value = {
    name         = module.updater.function_name
    alias        = module.updater.alias_name
    mapping_uuid = module.updater.mapping_uuid
    artefacts    = module.updater.artefact_bucket
    failures     = module.updater.failure_bucket
    alarms       = module.observability.function_alarm_names
  }
}

output "metric_names" {
  description = "The service's own metrics that alarms and the dashboard look at, by what writes them."
  value       = module.observability.metric_names
}

output "policies" {
  description = "The policy of each process as JSON."
  value       = module.security.policies
}

output "dashboard_name" {
  description = "The dashboard of CloudWatch."
  value       = module.observability.dashboard_name
}

output "alarm_topic_arn" {
  description = "The topic that alarms are sent to."
  value       = module.observability.topic_arn
}

output "vault_name" {
  description = "The vault of AWS Backup."
  value       = module.backup.vault_name
}
