"""What settings say about where a secret is, and what only looks like it."""

from __future__ import annotations

import pytest

from kiseki.security.secrets.reference import SecretReference, SecretReferenceInvalid

ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:prod/db-AbCdEf"


@pytest.mark.parametrize(
    ("text", "kind", "name", "field", "region"),
    [
        ("file:///run/secrets/db", "file", "/run/secrets/db", "", ""),
        ("file:///run/my%20secrets/db", "file", "/run/my secrets/db", "", ""),
        ("aws-sm://prod/db", "aws-sm", "prod/db", "", ""),
        ("aws-sm://prod/db#password", "aws-sm", "prod/db", "password", ""),
        ("aws-sm://prod/db?region=eu-west-1#pass word", "aws-sm", "prod/db", "pass word", "eu-west-1"),
        (f"aws-sm://{ARN}#password", "aws-sm", ARN, "password", "eu-central-1"),
        (f"aws-sm://{ARN}?region=us-east-1", "aws-sm", ARN, "", "us-east-1"),
        ("aws-sm://rds!db-1", "aws-sm", "rds!db-1", "", ""),
        ("vault://kv/prod/db#password", "vault", "kv/prod/db", "password", ""),
        ("vault://kv/db#pass%23word", "vault", "kv/db", "pass#word", ""),
    ],
)
def test_references(text: str, kind: str, name: str, field: str, region: str) -> None:
    reference = SecretReference.parse(text)
    assert (reference.kind, reference.name, reference.field, reference.region) == (kind, name, field, region)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hunter2",
        "a:b",
        "pass#word?x=1",
        "note: this",
        "https://example.org",
        "postgresql://u:p@db/shop",
        "redis://:pw@cache",
        "sqlite:",
        "dynamodb://x?region=eu-west-1",
        "-----BEGIN PRIVATE KEY-----\nabc",
        "://x",
        "a/b+c==",
    ],
)
def test_everything_else_is_the_secret_itself(text: str) -> None:
    reference = SecretReference.parse(text)
    assert reference.kind == "plain"
    assert reference.name == text
    assert reference.label == "a plain value"
    if len(text) > 3:
        assert text not in repr(reference)
        assert text not in str(reference)


@pytest.mark.parametrize(
    "text",
    [
        "file:/run/secrets/db",
        "file://run/secrets/db",
        "file://localhost/run/db",
        "file:////server/share",
        "file:///a#b",
        "file:///a?b=c",
        "file:///a%00b",
        "FILE:///run/secrets/db",
        "env:DATABASE_PASSWORD",
        "env://DATABASE_PASSWORD",
        "vault:kv/db#password",
        "vault://kv#password",
        "vault://kv/db",
        "vault://kv/../sys/seal#x",
        "vault://kv/%2e%2e/sys#x",
        "vault://kv/a%2fb#x",
        "vault://kv//db#x",
        "vault://kv/db?version=1#x",
        "vault://kv/db\r\nX-Vault-Token: x#y",
        "vault://kv/db#a\nb",
        "Vault://kv/db#x",
        "valut://kv/db#x",
        "awssm://prod/db",
        "aws-sm:prod/db",
        "aws-sm://#key",
        "aws-sm://a b",
        "aws-sm://prod/db#password?region=eu-west-1",
        "aws-sm://prod/db?region=evil.example.org%2F",
        "aws-sm://prod/db?region=eu-west-1&region=us-east-1",
        "aws-sm://prod/db?version=1",
        "gcp-sm://prod/db",
        "secret://x",
    ],
)
def test_what_is_nearly_a_reference_is_refused_and_not_shown(text: str) -> None:
    """`valut://kv/db#x` as a signing key would be one that everybody who reads the deployment can guess."""
    with pytest.raises(SecretReferenceInvalid) as refused:
        SecretReference.parse(text)
    assert text not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.__cause__ is None
