# The certificate of both names, and the names.

locals {
  hosts            = toset([for one in values(local.apis) : one.host])
  make_certificate = var.certificate_arn == null
  certificate_arn  = local.make_certificate ? aws_acm_certificate_validation.this[0].certificate_arn : var.certificate_arn
}

resource "aws_acm_certificate" "this" {
  count = local.make_certificate ? 1 : 0

  domain_name               = local.apis.command-api.host
  subject_alternative_names = [local.apis.query-api.host]
  validation_method         = "DNS"
  key_algorithm             = "EC_prime256v1"

  options {
    certificate_transparency_logging_preference = "ENABLED"
  }

  tags = merge(var.tags, { Name = var.name })

  lifecycle {
    create_before_destroy = true
  }
}

locals {
  proofs = local.make_certificate ? {
    for proof in aws_acm_certificate.this[0].domain_validation_options : proof.domain_name => proof
  } : {}
}

# These stay: ACM renews the certificate by itself as long as they are there.
resource "aws_route53_record" "proof" {
  for_each = local.make_certificate ? local.hosts : toset([])

  zone_id         = var.zone_id
  name            = local.proofs[each.key].resource_record_name
  type            = local.proofs[each.key].resource_record_type
  records         = [local.proofs[each.key].resource_record_value]
  ttl             = 300
  allow_overwrite = true
}

resource "aws_acm_certificate_validation" "this" {
  count = local.make_certificate ? 1 : 0

  certificate_arn         = aws_acm_certificate.this[0].arn
  validation_record_fqdns = [for record in aws_route53_record.proof : record.fqdn]
}

resource "aws_route53_record" "api" {
  for_each = var.zone_id == null ? {} : local.apis

  zone_id = var.zone_id
  name    = each.value.host
  type    = "A"

  alias {
    name                   = aws_lb.this.dns_name
    zone_id                = aws_lb.this.zone_id
    evaluate_target_health = true
  }
}
