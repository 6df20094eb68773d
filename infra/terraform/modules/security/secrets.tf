# Places of secrets. What is in them people put in, so that it is in no state: each is a JSON object with the field
# `value`, and processes read it by a reference such as aws-sm://NAME/audit?region=…#value.

locals {
  secrets = merge(
    {
      audit      = "The secret of the audit log's chain (KISEKI_AUDIT_KEY): 32 random bytes or more, as text"
      rate-store = "The URL of the store of rate limits with its password (KISEKI_RATE_STORE): rediss://…"
    },
    var.token_secret ? { token = "The secret that the issuer signs tokens with (KISEKI_TOKEN_SECRET): HS256" } : {},
  )

  # AWS adds a dash and six letters to a name.
  secret_arns = {
    for secret in keys(local.secrets) :
    secret => "${local.arn}:secretsmanager:${local.place}:${var.account_id}:secret:${var.name}/${secret}-??????"
  }
}

resource "aws_secretsmanager_secret" "this" {
  #checkov:skip=CKV2_AWS_57: The audit key begins a new chain and the others have a second party, so people rotate them, as the manual says.
  for_each = local.secrets

  name                    = "${var.name}/${each.key}"
  description             = each.value
  kms_key_id              = aws_kms_key.data.arn
  recovery_window_in_days = 30

  dynamic "replica" {
    for_each = var.replica_regions

    content {
      region     = replica.value
      kms_key_id = aws_kms_key.data_replica[replica.value].arn
    }
  }

  tags = merge(var.tags, { Name = "${var.name}/${each.key}" })

  lifecycle {
    prevent_destroy = true
  }
}
