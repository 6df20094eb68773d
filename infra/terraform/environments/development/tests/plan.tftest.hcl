# A whole plan of this environment, with the provider mocked: everything fits together, with these values.

mock_provider "aws" {}

variables {
  account_id          = "123456789012"
  region              = "eu-central-1"
  domain              = "shop.example.com"
  zone_id             = "Z0123456789ABCDEFGHIJ"
  identity            = { issuer = "https://id.example.com/", audience = "shop" }
  alarm_emails        = ["operations@example.com"]
  image               = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/kiseki-development@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
  rate_store_password = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
}

run "everything" {
  command = plan

  assert {
    condition     = module.system.name == "kiseki-development"
    error_message = "The environment has another's name."
  }
}

# The very first apply: no image was pushed yet, so there is a repository, and nothing that runs.
run "before_the_first_image" {
  command = plan

  variables {
    image          = null
    start_services = false
  }
}

run "with_the_lambda_updater" {
  command = plan

  variables {
    package = { key = "kiseki-1.zip" }
  }
}

run "with_public_keys_of_an_issuer" {
  command = plan

  variables {
    nat      = "one"
    identity = { issuer = "https://id.example.com/", audience = "shop", jwks_url = "https://id.example.com/jwks.json" }
  }

  assert {
    condition     = module.system.settings["command-api"]["KISEKI_JWKS_URL"] == "https://id.example.com/jwks.json" && !contains(keys(module.system.settings["command-api"]), "KISEKI_TOKEN_SECRET")
    error_message = "Tokens are still verified with a shared secret."
  }
}
