# The DynamoDB tables of one service: what its processes read and write, exactly as the code's table specifications say
# (`TableSpec`; `kiseki migrate` compares them and refuses a table that differs). Used by the system.
#
# The infrastructure makes the tables and owns them. A restore makes tables of its own beside them, under
# `<prefix>-r<when>-…`, which belong to the operator and are in no state.

locals {
  # Journal, claims and snapshots go back as far as DynamoDB can. What holds keys of people, or says whose tokens are
  # void, must not outlive an erasure by more than a week. The ledger of erasures is only ever added to, and bringing
  # back an earlier one would bring erased people back: no recovery, and no backup. What operations are under way is of
  # no use a minute later.
  tables = {
    journal = {
      hash_key      = "persistence-id"
      range_key     = "sequence-nr"
      attributes    = { "persistence-id" = "S", "sequence-nr" = "N", "slice" = "N", "committed-at-id" = "S" }
      index         = { name = "by-slice", hash_key = "slice", range_key = "committed-at-id", projection = "KEYS_ONLY" }
      stream        = "NEW_IMAGE"
      time_to_live  = null
      recovery_days = var.recovery_days
      private       = false
      replicated    = true
    }
    claims = {
      hash_key      = "key"
      range_key     = null
      attributes    = { "key" = "S" }
      index         = null
      stream        = null
      time_to_live  = "expires-at"
      recovery_days = var.recovery_days
      private       = false
      replicated    = true
    }
    snapshots = {
      hash_key      = "stream"
      range_key     = "version"
      attributes    = { "stream" = "S", "version" = "S" }
      index         = null
      stream        = null
      time_to_live  = null
      recovery_days = var.recovery_days
      private       = false
      replicated    = true
    }
    keys = {
      hash_key      = "subject"
      range_key     = "number"
      attributes    = { "subject" = "S", "number" = "N" }
      index         = null
      stream        = null
      time_to_live  = null
      recovery_days = var.key_recovery_days
      private       = true
      replicated    = true
    }
    revocations = {
      hash_key      = "issuer"
      range_key     = "subject"
      attributes    = { "issuer" = "S", "subject" = "S" }
      index         = null
      stream        = null
      time_to_live  = "forget-at"
      recovery_days = var.key_recovery_days
      private       = true
      replicated    = true
    }
    operations = {
      hash_key      = "name"
      range_key     = null
      attributes    = { "name" = "S" }
      index         = null
      stream        = null
      time_to_live  = null
      recovery_days = null
      private       = false
      replicated    = false
    }
    erasures = {
      hash_key      = "ledger"
      range_key     = "number"
      attributes    = { "ledger" = "S", "number" = "N" }
      index         = null
      stream        = null
      time_to_live  = null
      recovery_days = null
      private       = false
      replicated    = true
    }
  }

  replicas = { for name, table in local.tables : name => table.replicated ? var.replicas : {} }

  # DynamoDB replicates from a stream with both images, and the code takes that for the journal too.
  streams = {
    for name, table in local.tables : name => length(local.replicas[name]) > 0 ? "NEW_AND_OLD_IMAGES" : table.stream
  }
}

resource "aws_dynamodb_table" "this" {
  #checkov:skip=CKV_AWS_28: the ledger of erasures and the table of operations have no recovery on purpose, see above; all others have
  for_each = local.tables

  name         = "${var.name}-${each.key}"
  billing_mode = "PAY_PER_REQUEST"
  table_class  = "STANDARD"
  hash_key     = each.value.hash_key
  range_key    = each.value.range_key

  stream_enabled   = local.streams[each.key] != null
  stream_view_type = local.streams[each.key]

  deletion_protection_enabled = var.deletion_protection

  dynamic "attribute" {
    for_each = each.value.attributes

    content {
      name = attribute.key
      type = attribute.value
    }
  }

  # A mistake in a loop costs at most this much by the second.
  on_demand_throughput {
    max_read_request_units  = var.maximum_read_units
    max_write_request_units = var.maximum_write_units
  }

  dynamic "global_secondary_index" {
    for_each = each.value.index[*]

    content {
      name            = global_secondary_index.value.name
      hash_key        = global_secondary_index.value.hash_key
      range_key       = global_secondary_index.value.range_key
      projection_type = global_secondary_index.value.projection

      on_demand_throughput {
        max_read_request_units  = var.maximum_read_units
        max_write_request_units = var.maximum_write_units
      }
    }
  }

  dynamic "ttl" {
    for_each = each.value.time_to_live[*]

    content {
      enabled        = true
      attribute_name = ttl.value
    }
  }

  point_in_time_recovery {
    enabled                 = each.value.recovery_days != null
    recovery_period_in_days = each.value.recovery_days
  }

  server_side_encryption {
    enabled     = true
    kms_key_arn = var.kms_key_arn
  }

  dynamic "replica" {
    for_each = local.replicas[each.key]

    content {
      region_name = replica.key
      kms_key_arn = replica.value
      # What `kiseki dr` was written for: one region writes, and a replica can be taken out of its group without losing
      # what is in it. Strong consistency of several regions knows no such step.
      consistency_mode = "EVENTUAL"
      # A replica can't be told how many days: it would keep 35, which is too long for keys of people. There
      # `kiseki backup create` of that region makes the copies of keys, and sees to their age.
      point_in_time_recovery      = each.value.recovery_days != null && !each.value.private
      deletion_protection_enabled = var.deletion_protection
      propagate_tags              = true
    }
  }

  tags = merge(var.tags, { Name = "${var.name}-${each.key}" })

  lifecycle {
    prevent_destroy = true
  }
}

# Which tables are in force is a matter of each region, so each has a table of its own for it.
resource "aws_dynamodb_table" "operations_of_replicas" {
  #checkov:skip=CKV_AWS_28: which tables were in force a while ago is of no use, and dangerous when it comes back
  for_each = var.replicas

  region       = each.key
  name         = "${var.name}-operations"
  billing_mode = "PAY_PER_REQUEST"
  table_class  = "STANDARD"
  hash_key     = local.tables.operations.hash_key

  deletion_protection_enabled = var.deletion_protection

  attribute {
    name = local.tables.operations.hash_key
    type = "S"
  }

  on_demand_throughput {
    max_read_request_units  = var.maximum_read_units
    max_write_request_units = var.maximum_write_units
  }

  point_in_time_recovery {
    enabled = false
  }

  server_side_encryption {
    enabled     = true
    kms_key_arn = each.value
  }

  tags = merge(var.tags, { Name = "${var.name}-operations" })

  lifecycle {
    prevent_destroy = true
  }
}

# The lease that says which region writes: only with two regions, and then in neither of them, so that whoever is cut
# off from the other can't decide alone.
resource "aws_dynamodb_table" "leases" {
  #checkov:skip=CKV_AWS_28: an earlier lease is never true again, and would let two regions write
  count = var.lease_region == null ? 0 : 1

  region       = var.lease_region
  name         = "${var.name}-leases"
  billing_mode = "PAY_PER_REQUEST"
  table_class  = "STANDARD"
  hash_key     = "lease"

  deletion_protection_enabled = var.deletion_protection

  attribute {
    name = "lease"
    type = "S"
  }

  on_demand_throughput {
    max_read_request_units  = var.maximum_read_units
    max_write_request_units = var.maximum_write_units
  }

  point_in_time_recovery {
    enabled = false
  }

  server_side_encryption {
    enabled     = true
    kms_key_arn = var.lease_kms_key_arn
  }

  tags = merge(var.tags, { Name = "${var.name}-leases" })

  lifecycle {
    prevent_destroy = true

    precondition {
      condition     = !contains(keys(var.replicas), coalesce(var.lease_region, "none")) && var.lease_region != var.region
      error_message = "The lease has to be in a third region: neither where the tables are nor where a replica is."
    }
  }
}
