"""What is unsafe about secrets and connections is found, each with a mend and without a value."""

from __future__ import annotations

from pathlib import Path

import pytest

from kiseki.security.secrets.findings import (
    Finding,
    aws_findings,
    connection_findings,
    is_inside,
    master_key_findings,
    place_findings,
    secret_findings,
    vault_findings,
)

SAFE = "sslmode=verify-full&sslrootcert=/etc/ca.pem"


def names(findings: list[Finding]) -> list[str]:
    for each in findings:
        assert each.problem
        assert each.remedy
        assert "hunter2" not in repr(each)
        assert "\n" not in each.problem + each.remedy
    return [each.name for each in findings]


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("", []),
        ("sqlite:", []),
        (f"postgresql://u@db/shop?{SAFE}", []),
        (f"postgresql://u@db/shop?{SAFE}&password=file:///run/secrets/db", []),
        (f"postgresql://u@db/shop?{SAFE}&password=aws-sm://db%23password", []),
        (f"postgresql://u:vault%3A%2F%2Fkv%2Fdb%23p@db/shop?{SAFE}", []),
        (f"postgresql://u@db/shop?{SAFE}&auth=aws-iam&region=eu-west-1", []),
        ("postgresql://u@/shop?host=/run/postgresql", []),
        ("postgresql://u@db/shop", ["postgres.sslmode", "postgres.sslrootcert"]),
        ("postgres://u@db/shop", ["postgres.sslmode", "postgres.sslrootcert"]),
        *(
            (f"postgresql://u@db/shop?sslrootcert=/ca&sslmode={mode}", ["postgres.sslmode"])
            for mode in ("disable", "allow", "prefer", "require", "verify-ca", "VERIFY-FULL", "")
        ),
        ("postgresql://u@db/shop?sslmode=verify-full", ["postgres.sslrootcert"]),
        ("postgresql://u@db/shop?sslmode=verify-full&sslrootcert=", ["postgres.sslrootcert"]),
        (f"postgresql://u:hunter2@db/shop?{SAFE}", ["postgres.password"]),
        (f"postgresql://u:hunter2@a:1,b:2/shop?{SAFE}", ["postgres.password"]),
        (f"postgresql://u@db/shop?{SAFE}&password=hunter2", ["postgres.password"]),
        (f"postgresql://u@db/shop?{SAFE}&ssl_min_protocol_version=TLSv1", ["postgres.tls"]),
        ("postgresql://u@/shop?host=/run/postgresql,db", ["postgres.sslmode", "postgres.sslrootcert"]),
        ("postgresql://u@/shop?host=db", ["postgres.sslmode", "postgres.sslrootcert"]),
        ("postgresql://u@a:1,b:2/shop", ["postgres.sslmode", "postgres.sslrootcert"]),
        ("dynamodb://x?region=eu-west-1", []),
        ("dynamodb://x?region=eu-west-1&endpoint=https://vpce-1.example", []),
        ("dynamodb://x?region=eu-west-1&endpoint=http://127.0.0.1:8000", ["aws.endpoint"]),
        ("dynamodb://x?region=eu-west-1&endpoint=HTTP://127.0.0.1:8000", ["aws.endpoint"]),
        ("dynamodb://AKIAIOSFODNN7EXAMPLE:hunter2@x?region=eu-west-1", ["aws.static_keys"]),
        ("aws-kms://alias/x?region=eu-west-1&endpoint=http://kms", ["aws.endpoint"]),
        ("rediss://cache", []),
        ("redis://cache", ["redis.tls"]),
        ("redis://127.0.0.1", []),
        ("rediss://:hunter2@cache", ["redis.password"]),
    ],
)
def test_connections(url: str, found: list[str]) -> None:
    assert names(connection_findings(url)) == found


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("", []),
        ("hunter2", ["secret.plain"]),
        ("file:///run/secrets/x", []),
        ("vault://kv/x#y", []),
        ("aws-sm://x?endpoint=http://127.0.0.1:1", ["aws.endpoint"]),
        ("valut://kv/hunter2#y", ["secret.reference"]),
    ],
)
def test_secrets(value: str, found: list[str]) -> None:
    assert names(secret_findings("token_secret", value)) == found


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, []),
        ({"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE"}, ["aws.static_keys"]),
        ({"AWS_ACCESS_KEY_ID": "ASIAIOSFODNN7EXAMPLE", "AWS_SESSION_TOKEN": ""}, ["aws.static_keys"]),
        ({"AWS_ACCESS_KEY_ID": "ASIAIOSFODNN7EXAMPLE", "AWS_SESSION_TOKEN": "hunter2"}, []),
        ({"AWS_ENDPOINT_URL": "http://x", "AWS_ENDPOINT_URL_KMS": "http://y"}, ["aws.endpoint", "aws.endpoint"]),
        ({"SSLKEYLOGFILE": "/tmp/keys"}, ["tls.key_log"]),
    ],
)
def test_the_environment(environ: dict[str, str], found: list[str]) -> None:
    assert names(aws_findings(environ)) == found


def test_vault_and_master_keys() -> None:
    assert names(vault_findings("")) == names(vault_findings("https://vault:8200")) == []
    assert names(vault_findings("http://vault:8200")) == ["vault.address"]
    assert names(master_key_findings("")) == ["master_key.default"]
    for fine in ("/keys/master.key", "aws-kms://alias/x?region=eu-west-1", "vault-transit://transit/x"):
        assert names(master_key_findings(fine)) == []
    assert names(master_key_findings("aws-kms://x?region=eu-west-1&endpoint=http://kms")) == ["aws.endpoint"]


@pytest.mark.parametrize(
    ("where", "inside"),
    [
        ("", False),
        ("/srv/data", True),
        ("/srv/data/x", True),
        ("/srv/data/../x", False),
        ("/srv/x/../data/x", True),
        ("/srv/data-two", False),
        ("file:/srv/data/x", True),
        ("file:///srv/data/x", True),
        ("file:/srv/x", False),
        ("postgresql://srv/data", False),
        ("aws-kms://alias/x", False),
        ("/srv/x\0/srv/data", True),
    ],
)
def test_what_is_inside_of_a_directory(where: str, inside: bool) -> None:
    assert is_inside(where, Path("/srv/data")) is inside
    assert names(place_findings("audit_key", where, Path("/srv/data"))) == ["secret.data_dir"] * inside


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert is_inside(str(tmp_path / "link" / "new" / "x"), tmp_path / "data")
    assert is_inside(str(tmp_path / "data" / "x"), tmp_path / "link")
    assert not is_inside(str(tmp_path / "loop"), tmp_path / "data")
