"""What is unsafe about settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kiseki.service.checks import UnsafeSettings, findings, refuse_unsafe
from kiseki.service.settings import Settings

SAFE: dict[str, Any] = {
    "profile": "production",
    "data_dir": Path("/srv/kiseki"),
    "jwks_url": "https://issuer.example/jwks",
    "token_issuer": "https://issuer.example",
    "tls_certificate": Path("/run/secrets/tls.pem"),
    "tls_key": Path("/run/secrets/tls.key"),
    "hosts": ("api.example",),
    "master_key": "aws-kms://alias/kiseki?region=eu-west-1",
    "erasure_ledger": "/mnt/ledger",
    "audit_key": "file:///run/secrets/audit",
    "audit_anchors": "/mnt/anchors",
}
VERIFIED = "sslmode=verify-full&sslrootcert=/etc/rds.pem"


def names(environ: dict[str, str] | None = None, **given: Any) -> list[str]:
    return [finding.name for finding in findings(Settings(**given), environ or {})]


def safe_but(environ: dict[str, str] | None = None, **given: Any) -> list[str]:
    return names(environ, **{**SAFE, **given})


def test_development_is_fine_as_it_is() -> None:
    assert names() == []
    refuse_unsafe(Settings(), {})


def test_production_names_what_is_missing() -> None:
    found = names(profile="production")
    assert found == [
        "authentication",
        "authentication",
        "transport",
        "hosts",
        "master_key.default",
        "erasure_ledger",
        "audit_key",
        "audit_anchors",
    ]
    with pytest.raises(UnsafeSettings) as refused:
        refuse_unsafe(Settings(profile="production"), {})
    first, *others = str(refused.value).splitlines()
    assert first == "the production profile refuses to start; 8 findings:"
    assert [line.split(":")[0].removeprefix("  - ") for line in others] == found


def test_a_production_that_is_safe_starts() -> None:
    assert safe_but() == []


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"jwks_url": ""}, ["authentication"]),
        ({"jwks_url": "http://issuer.example/jwks"}, ["authentication"]),
        ({"token_issuer": ""}, ["authentication"]),
        ({"token_secret": "secret"}, ["authentication", "secret.plain"]),
        ({"token_secret": "a" * 64}, ["authentication", "secret.plain"]),
        ({"token_secret": "file:///run/secrets/token"}, []),
        ({"tls_certificate": None}, ["transport"]),
        ({"tls_certificate": None, "tls_proxy": True}, ["transport"]),
        ({"tls_certificate": None, "tls_proxy": True, "trusted_proxies": ("10.0.0.0/16",)}, []),
        ({"trusted_proxies": ("0.0.0.0/0",)}, ["trusted_proxies"]),
        ({"trusted_proxies": ("anything",)}, ["trusted_proxies"]),
        ({"hosts": ()}, ["hosts"]),
        ({"workers": 4}, ["rate_store"]),
        ({"journal": "postgresql://kiseki@db/kiseki"}, ["postgres.sslmode", "postgres.sslrootcert"] * 3),
        ({"journal": f"postgresql://kiseki@db/kiseki?{VERIFIED}"}, []),
        ({"journal": f"postgresql://kiseki:hunter2@db/kiseki?{VERIFIED}"}, ["postgres.password"] * 3),
        ({"erasure_ledger": "/srv/kiseki/erasures"}, ["erasure_ledger"]),
        ({"audit_anchors": "/srv/kiseki/anchors"}, ["audit_anchors"]),
        ({"audit_failure": "continue"}, ["audit_failure"]),
        ({"audit_sinks": ("stdout",)}, ["audit_sinks"]),
    ],
)
def test_each_unsafe_setting_is_found(given: dict[str, Any], found: list[str]) -> None:
    assert safe_but(**given) == found


def test_the_environment_is_looked_at_too() -> None:
    assert safe_but({"AWS_ACCESS_KEY_ID": "AKIA"}) == ["aws.static_keys"]
    assert safe_but({"AWS_ACCESS_KEY_ID": "ASIA", "AWS_SESSION_TOKEN": "t"}) == []


def test_no_finding_shows_a_secret() -> None:
    given = {"token_secret": "hunter2", "journal": "postgresql://kiseki:hunter2@db/kiseki", "audit_key": "hunter2"}
    for one in findings(Settings(**{**SAFE, **given}), {}):
        assert "hunter2" not in str(one)


def test_inner_times_have_to_be_shorter_than_outer_ones() -> None:
    assert names(request_timeout=11) == ["shutdown"]
    assert names(request_timeout=11, requests_done_timeout=11) == []
    assert names(consistency_wait=10) == ["timeouts"]


def test_a_shutdown_has_to_fit_in_what_the_platform_gives() -> None:
    assert names(termination_grace=30) == ["shutdown"]
    assert names(termination_grace=41) == []
    assert safe_but(termination_grace=30) == ["shutdown"]
