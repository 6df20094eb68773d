# The names of the service's own metrics, as the code writes them: docs/metrics.md says what they mean. A test compares
# them with the code. No metric is made of log lines here: processes and function write theirs in embedded metric format.

locals {
  metrics = {
    process = [
      "ready",
      "projection_lag_commits",
      "projection_lag_seconds",
      "parked_streams",
      "http_requests",
      "http_5xx",
      "http_p99_seconds",
      "audit_healthy",
      "audit_anchor_age_seconds",
      "rate_limit_shared",
      "tls_expires_seconds",
    ]
    ages = [
      "backup_age_seconds",
      "protection_age_seconds",
      "drill_age_seconds",
    ]
    function = [
      "records",
      "applied",
      "skipped",
      "parked",
      "reread",
      "dropped",
      "foreign",
      "tampered",
      "redelivered",
    ]
  }

  # Each by its name, so that one that is written wrongly is an error of the configuration and not an alarm that never rings.
  own    = { for metric in local.metrics.process : metric => metric }
  aged   = { for metric in local.metrics.ages : metric => metric }
  counts = { for metric in local.metrics.function : metric => metric }
}
