"""What is unsafe about settings."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from kiseki.cli.main import run
from kiseki.security.secrets.source import SecretSource
from kiseki.service.checks import UnsafeSettings, findings, refuse_unsafe
from kiseki.service.hosts import ANY_HOST
from kiseki.service.kinds import Parts
from kiseki.service.limits import client_addresses
from kiseki.service.masks import masking_of
from kiseki.service.settings import Settings
from kiseki.service.transport import Transport, is_loopback, tls_findings
from tests.servers.certificates import Authority
from tests.unit.security.fakes import FakeClock

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


SERVE = Parts(command=True, query=True, updater=True)
COMMAND_API, QUERY_API, UPDATER = Parts(command=True), Parts(query=True), Parts(updater=True)


def names(environ: dict[str, str] | None = None, parts: Parts = SERVE, **given: Any) -> list[str]:
    return [finding.name for finding in findings(Settings(**given), environ or {}, parts)]


def safe_but(environ: dict[str, str] | None = None, parts: Parts = SERVE, **given: Any) -> list[str]:
    return names(environ, parts, **{**SAFE, **given})


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
        ({"erasure_ledger": "file:/srv/kiseki/erasures"}, ["erasure_ledger"]),
        ({"erasure_ledger": "/srv/elsewhere/../kiseki/erasures"}, ["erasure_ledger"]),
        ({"erasure_ledger": "/srv/kiseki/../ledger"}, []),
        ({"erasure_ledger": "file:/mnt/ledger"}, []),
        ({"erasure_ledger": "/mnt/\0"}, ["erasure_ledger"]),
        ({"audit_anchors": "file:/srv/kiseki/anchors"}, ["audit_anchors"]),
        ({"audit_anchors": "file:///srv/kiseki/anchors"}, ["audit_anchors"]),
        ({"audit_anchors": "/mnt/../srv/kiseki"}, ["audit_anchors"]),
        ({"audit_anchors": "/srv/kiseki-anchors"}, []),
        ({"audit_dir": Path("/mnt/audit"), "audit_anchors": "/mnt/audit"}, ["audit_anchors"]),
        ({"audit_dir": Path("/mnt/audit"), "audit_anchors": "file:/mnt/x/../audit/heads"}, ["audit_anchors"]),
        ({"audit_dir": Path("/mnt/audit"), "audit_anchors": "/mnt/audit-anchors"}, []),
        ({"master_key": "/srv/kiseki/keys/master.key"}, ["secret.data_dir"]),
        ({"master_key": "file:/srv/kiseki/keys/master.key"}, ["secret.data_dir"]),
        ({"master_key": "/run/secrets/master"}, []),
        ({"master_keys_previous": ("/srv/kiseki/master.old",)}, ["secret.data_dir"]),
        ({"audit_key": "file:///srv/kiseki/audit"}, ["secret.data_dir"]),
        ({"audit_key": "file:///run/../srv/kiseki/audit"}, ["secret.data_dir"]),
        ({"token_secret": "file:///srv/kiseki/token"}, ["secret.data_dir"]),
        ({"rate_store": "file:///srv/kiseki/redis"}, ["secret.data_dir"]),
        ({"audit_keys_previous": ("file:///srv/kiseki/audit.old",)}, ["secret.data_dir"]),
        ({"audit_keys_previous": ("file:///run/secrets/old", "hunter2")}, ["secret.plain"]),
        ({"audit_keys_previous": ("valut://kv/a#b",)}, ["secret.reference"]),
        ({"token_secret": "file:///run/secrets/audit"}, ["audit_key"]),
        ({"audit_key": "vault://kv/x#y", "token_secret": "vault://kv/x#y"}, ["audit_key"]),
        ({"audit_key": "vault://kv/x#y", "token_secret": "vault://kv/x#z"}, []),
        ({"cors_origins": ("https://shop.example",)}, []),
        ({"cors_origins": ("https://shop.example", "http://shop.example")}, ["cors_origins"]),
        ({"cors_origins": ("https://Shop.example/",)}, ["cors_origins"]),
        ({"hosts": ("api.example", "https://api.example")}, ["hosts"]),
        ({"hosts": ("api example",)}, ["hosts"]),
        ({"host": "0.0.0.0"}, ["management_host"]),
        ({"host": "::"}, ["management_host"]),
        ({"host": "kiseki.internal"}, ["management_host"]),
        ({"host": "::1"}, []),
        ({"host": "localhost"}, []),
        ({"host": "0.0.0.0", "management_host": "127.0.0.1"}, []),
        ({"host": "0.0.0.0", "management_host": "0.0.0.0"}, []),
        ({"workers": 4, "rate_store": "memory"}, ["rate_store"]),
        ({"workers": 4, "rate_store": "file:///run/secrets/redis"}, []),
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


# In development: drain 3, unbind 2, requests 10, stop 5, projections 10, flush 5, close 5.
@pytest.mark.parametrize(
    ("parts", "workers", "longest"),
    [
        (SERVE, 1, 40),
        (COMMAND_API, 1, 30),
        (QUERY_API, 1, 30),
        (UPDATER, 1, 20),
        # A supervisor: its workers, a moment before one that hangs is killed, the updater and the same, and itself.
        (SERVE, 2, 30 + 5 + 20 + 5 + 5),
        (COMMAND_API, 2, 30 + 5 + 5),
        # There is one updater, whatever is set for APIs.
        (UPDATER, 2, 20),
    ],
)
def test_a_shutdown_has_to_fit_in_what_the_platform_gives(parts: Parts, workers: int, longest: float) -> None:
    given: dict[str, Any] = {"parts": parts, "workers": workers}
    assert names(**given, termination_grace=longest) == []
    assert names(**given, termination_grace=longest - 1) == ["shutdown"]


def test_in_production_the_defaults_fit_in_what_ecs_gives() -> None:
    assert safe_but(workers=8, rate_store="rediss://cache.example") == []
    assert safe_but(termination_grace=30) == ["shutdown"]


def test_the_finding_names_the_numbers() -> None:
    (found,) = findings(Settings(termination_grace=12), {}, UPDATER)
    assert "20 s (projections_timeout 10 + flush_timeout 5 + close_timeout 5)" in found.problem
    assert "kills after 12 s (termination_grace)" in found.problem


def test_the_command_line_says_the_same_for_each_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kiseki.toml").write_text("termination_grace = 25\n")
    assert run(["check", "--process", "updater"]) == 0
    assert run(["check", "--process", "command-api"]) == 1
    assert "shutdown: a shutdown may take 30 s (drain_delay 3 + " in capsys.readouterr().out
    assert run(["check", "--process", "worker"]) == 2


def test_an_updater_has_no_requests() -> None:
    assert names(parts=UPDATER, request_timeout=11, consistency_wait=20) == []


def test_links_into_the_data_are_followed(tmp_path: Path) -> None:
    data, other = tmp_path / "data", tmp_path / "other"
    data.mkdir()
    other.mkdir()
    (tmp_path / "ledger").symlink_to(data)
    (other / "key").symlink_to(data / "key")
    (data / "away").symlink_to(other)
    (tmp_path / "alias").symlink_to(data)
    given: dict[str, Any] = {"data_dir": data}
    assert safe_but(**given, erasure_ledger=str(tmp_path / "ledger")) == ["erasure_ledger"]
    assert safe_but(**given, audit_anchors=f"file:{tmp_path / 'ledger' / 'heads'}") == ["audit_anchors"]
    assert safe_but(**given, audit_key=f"file://{other / 'key'}") == ["secret.data_dir"]
    assert safe_but(**given, master_key=str(other / "key")) == ["secret.data_dir"]
    assert safe_but(data_dir=tmp_path / "alias", erasure_ledger=str(data / "x")) == ["erasure_ledger"]
    # What only looks as if it were inside.
    assert safe_but(**given, erasure_ledger=str(data / "away")) == []


@pytest.mark.parametrize("parts", [COMMAND_API, QUERY_API])
def test_apis_that_run_apart_share_their_limits_or_say_that_they_do_not(parts: Parts) -> None:
    assert safe_but(parts=parts) == ["rate_store"]
    assert safe_but(parts=parts, rate_store="memory") == []
    assert safe_but(parts=parts, rate_store="rediss://cache.example") == []
    assert names(parts=parts) == []


def test_an_updater_needs_nothing_that_only_apis_use() -> None:
    unused: dict[str, Any] = {
        "jwks_url": "",
        "token_issuer": "",
        "tls_certificate": None,
        "tls_key": None,
        "hosts": (),
        "trusted_proxies": ("0.0.0.0/0",),
        "cors_origins": ("http://shop.example",),
        "token_secret": "hunter2",
    }
    assert safe_but(parts=UPDATER, **unused) == []
    assert set(safe_but(parts=COMMAND_API, **unused)) > {"authentication", "transport", "hosts"}
    # What it has too is looked at.
    assert safe_but(parts=UPDATER, host="0.0.0.0") == ["management_host"]
    assert safe_but(parts=UPDATER, master_key="") == ["master_key.default"]
    assert safe_but(parts=UPDATER, audit_key="hunter2") == ["secret.plain"]
    refuse_unsafe(Settings(**{**SAFE, **unused}), {}, UPDATER)


def test_secrets_of_lists_and_with_colons_are_masked() -> None:
    settings = Settings(
        token_secret="a-secret:with-a-colon",
        audit_keys_previous=("first-audit-key-before", "file:///run/secrets/second", "valut://kv/hunter2hunter2#x"),
        rate_store="memory",
    )
    text = masking_of(settings).mask(
        "a-secret:with-a-colon first-audit-key-before file:///run/secrets/second valut://kv/hunter2hunter2#x in memory"
    )
    assert text == "[masked] [masked] file:///run/secrets/second [masked] in memory"


async def of_tls(now: datetime.datetime | None = None, **given: Any) -> list[tuple[str, str]]:
    secrets = SecretSource(clock=FakeClock())
    settings = Settings(**{**SAFE, **given})
    found = await tls_findings(settings, secrets=secrets, now=now or datetime.datetime.now(datetime.UTC))
    await secrets.close()
    assert all("hunter2" not in str(one) and "\n" not in str(one) for one in found)
    return [(one.name, one.problem) for one in found]


async def test_files_of_tls_are_looked_at_before_a_start(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue()
    good: dict[str, Any] = {"tls_certificate": pair.certificate, "tls_key": pair.key}
    assert await of_tls(**good) == []
    assert await of_tls(tls_certificate=None, tls_key=None, tls_proxy=True) == []
    [(name, problem)] = await of_tls(**good, tls_minimum="1.2")
    assert (name, "1.2" in problem) == ("tls", True)
    now = datetime.datetime.now(datetime.UTC)
    assert await of_tls(**good, now=now + datetime.timedelta(days=75)) == []
    assert [name for name, _ in await of_tls(**good, now=now + datetime.timedelta(days=77))] == ["tls.expires"]
    [(name, problem)] = await of_tls(**good, now=now + datetime.timedelta(days=91))
    assert (name, "expired" in problem) == ("tls", True)
    for wrong in (
        {"tls_certificate": None},
        {"tls_certificate": tmp_path / "none.pem"},
        {"tls_key": authority.issue("other").key},
        {"tls_client_ca": pair.key},
        {"tls_key_password": f"file://{tmp_path / 'none'}"},
    ):
        assert [name for name, _ in await of_tls(**{**good, **wrong})] == ["tls"], wrong
        assert [name for name, _ in await of_tls(**{**good, **wrong, "profile": "development"})] == ["tls"], wrong
    pair.key.chmod(0o644)
    assert [name for name, _ in await of_tls(**good)] == ["tls"]


async def test_the_password_of_a_key_is_used_to_look_at_it(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue(password=b"hunter2hunter2")
    (tmp_path / "password").write_text("hunter2hunter2")
    (tmp_path / "password").chmod(0o600)
    good: dict[str, Any] = {"tls_certificate": pair.certificate, "tls_key": pair.key}
    assert await of_tls(**good, tls_key_password=f"file://{tmp_path / 'password'}") == []
    assert [name for name, _ in await of_tls(**good)] == ["tls"]


def test_check_looks_at_the_files_of_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = Authority(tmp_path).issue()
    pair.key.chmod(0o644)
    monkeypatch.setenv("KISEKI_TLS_CERTIFICATE", str(pair.certificate))
    monkeypatch.setenv("KISEKI_TLS_KEY", str(pair.key))
    assert run(["check", "--data-dir", str(tmp_path / "data")]) == 1
    assert "tls: others may read or change the key" in capsys.readouterr().out
    pair.key.chmod(0o600)
    assert run(["check", "--data-dir", str(tmp_path / "data")]) == 0


@pytest.mark.parametrize(
    ("peer", "may"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("127.0.0.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.2.0.1", False),
        ("192.0.2.1", False),
        ("fe80::1%eth0", False),
        ("", False),
        ("nonsense", False),
        (None, False),
    ],
)
def test_behind_a_proxy_only_proxies_and_this_machine_may_ask(peer: str | None, may: bool) -> None:
    settings = Settings(tls_proxy=True, trusted_proxies=("10.1.0.0/16",))
    transport = Transport(None, ANY_HOST, None, True, settings, client_addresses(settings))
    assert transport.peers is not None
    assert transport.peers(peer) is may
    open_to_all = Settings(trusted_proxies=("10.1.0.0/16",))
    assert transport._replace(settings=open_to_all).peers is None


def test_addresses_of_this_machine() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost", "::ffff:127.0.0.1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "", "localhost.example", "::ffff:10.0.0.1")))


@pytest.mark.parametrize("kind", ["serve", "command-api", "query-api", "updater"])
def test_each_kind_of_process_is_refused_for_what_it_runs(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KISEKI_PROFILE", "production")
    assert run([kind, "--data-dir", str(tmp_path / "data")]) == 1
    told = capsys.readouterr().err
    assert ("authentication: " in told) is ("transport: " in told) is (kind != "updater")
    assert ("rate_store: " in told) is kind.endswith("-api")
    assert "master_key.default: " in told
    assert not (tmp_path / "data").exists()


SITES = {"primary_region": "eu-west-1", "secondary_region": "eu-central-1", "site": "eu-west-1"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"lease": ""}, "no lease says which of them writes"),
        ({"lease": "dynamodb://shop?region=eu-central-1"}, "in one of the two regions"),
        ({"lease": "/srv/shop/data/lease", "data_dir": Path("/srv/shop/data")}, "in data_dir"),
        ({"lease": "/mnt/witness", "site": "us-east-1"}, "site has to be eu-west-1 or eu-central-1"),
        ({"lease": "/mnt/witness", "lease_seconds": 10}, "an append may take longer"),
        ({"lease": "/mnt/witness"}, None),
        ({"lease": "dynamodb://shop?region=eu-north-1"}, None),
    ],
)
def test_two_sites_need_a_lease_that_neither_takes_with_it(given: dict[str, Any], says: str | None) -> None:
    settings = Settings(profile="production", **{**SITES, **given})
    found = [one.problem for one in findings(settings, {}) if one.name.startswith("lease")]
    assert [says in problem for problem in found] == [True] if says else found == []
