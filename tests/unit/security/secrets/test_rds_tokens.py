"""Tokens of IAM for RDS are those that AWS's own library makes, and go only where they belong."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

import botocore.auth
import botocore.session
import pytest
from botocore.signers import generate_db_auth_token

from kiseki.clients.aws_rds import RdsTokens, rds_token
from kiseki.clients.aws_signing import AwsKeys
from kiseki.clients.postgres import PasswordSource, PostgresAddress
from kiseki.clients.urls import StoreUrlInvalid

NOW = datetime(2026, 3, 1, 12, 34, 56, tzinfo=UTC)
IAM = "auth=aws-iam&region=eu-west-1&sslmode=verify-full&sslrootcert=/ca.pem"
KEYS = AwsKeys("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
SESSION_KEYS = AwsKeys("ASIAEXAMPLE", "secret/+=", "FwoGZXIvYXdzEJr//////////wEaDExample+/=")


def botocores(monkeypatch: pytest.MonkeyPatch, keys: AwsKeys, user: str) -> str:
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: NOW.replace(tzinfo=None))
    client = botocore.session.Session().create_client(
        "rds",
        region_name="eu-west-1",
        aws_access_key_id=keys.access_key,
        aws_secret_access_key=keys.secret_key,
        aws_session_token=keys.token,
    )
    return str(generate_db_auth_token(client, "db.abc.eu-west-1.rds.amazonaws.com", 5432, user))


@pytest.mark.parametrize("keys", [KEYS, SESSION_KEYS])
@pytest.mark.parametrize("user", ["kiseki", "a user+/@ü"])
def test_a_token_is_the_one_that_botocore_makes(monkeypatch: pytest.MonkeyPatch, keys: AwsKeys, user: str) -> None:
    token = rds_token(
        keys, host="db.abc.eu-west-1.rds.amazonaws.com", port=5432, user=user, region="eu-west-1", now=NOW
    )
    expected = botocores(monkeypatch, keys, user)
    # The order of parameters is of no meaning, the signature is over all of them.
    assert sorted(token.partition("?")[2].split("&")) == sorted(expected.partition("?")[2].split("&"))
    assert token.partition("?")[0] == expected.partition("?")[0] == "db.abc.eu-west-1.rds.amazonaws.com:5432/"


async def test_each_connection_has_a_token_of_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-aws")
    times = iter([NOW, NOW.replace(hour=13), NOW.replace(hour=14)])
    tokens = RdsTokens(host="db", port=5432, user="kiseki", region="eu-west-1", now=lambda: next(times))
    made = [await tokens.password(), await tokens.password(), await tokens.renewed()]
    assert len(set(made)) == 3
    assert all("X-Amz-Expires=900" in token and "secret-of-aws" not in token for token in made)
    assert "AKID" not in repr(tokens)


def test_the_url_says_iam_and_the_dsn_does_not() -> None:
    address = PostgresAddress.parse(f"postgresql://kiseki@db:5433/shop?{IAM}&schema=ours", schema="x")
    assert isinstance(address.passwords, RdsTokens)
    assert address.dsn == "postgresql://kiseki@db:5433/shop?sslmode=verify-full&sslrootcert=%2Fca.pem"
    assert (address.schema, address.label) == ("ours", "db:5433/shop")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://kiseki@db/shop?auth=aws-iam&region=eu-west-1",
        *(
            f"postgresql://kiseki@db/shop?auth=aws-iam&region=eu-west-1&sslmode={mode}"
            for mode in ("disable", "allow", "prefer", "require", "verify-ca")
        ),
        "postgresql://kiseki@db/shop?auth=aws-iam&sslmode=verify-full",
        "postgresql://kiseki@db/shop?auth=ldap&region=eu-west-1&sslmode=verify-full",
        "postgresql://kiseki@db/shop?region=eu-west-1",
        f"postgresql://kiseki:hunter2@db/shop?{IAM}",
        f"postgresql://kiseki@db/shop?{IAM}&password=hunter2",
        f"postgresql://db/shop?{IAM}",
        f"postgresql://kiseki@a:1,b:2/shop?{IAM}",
        f"postgresql://kiseki@/shop?{IAM}&host=/run/pg",
        f"postgresql://kiseki@db/shop?{IAM}&host=elsewhere",
        "postgresql://kiseki@db/shop?auth=aws-iam&region=evil.example&sslmode=verify-full",
        "postgresql://kiseki@db/shop?sslmode=parse",
        "postgresql://kiseki@db/shop?sslmode=",
    ],
)
def test_a_token_never_goes_to_whoever_poses_as_the_database(url: str) -> None:
    with pytest.raises(StoreUrlInvalid) as refused:
        PostgresAddress.parse(url, schema="x")
    assert "hunter2" not in str(refused.value)


class Fixed:
    def __init__(self, reference: str) -> None:
        self.reference = reference

    async def password(self) -> str:
        return "a"

    async def renewed(self) -> str:
        return "b"


def made(seen: list[str], reference: str) -> PasswordSource:
    seen.append(reference)
    return Fixed(reference)


@pytest.mark.parametrize(
    ("url", "dsn", "reference"),
    [
        (
            "postgresql://u@db/shop?password=aws-sm://prod/db?region=eu-west-1%23password",
            "postgresql://u@db/shop",
            "aws-sm://prod/db?region=eu-west-1#password",
        ),
        ("postgresql://u:file%3A%2F%2F%2Frun%2Fpw@db/shop", "postgresql://u@db/shop", "file:///run/pw"),
        ("postgresql://db/shop?user=u&password=vault://kv/db%23p", "postgresql://db/shop?user=u", "vault://kv/db#p"),
    ],
)
def test_a_password_that_is_a_reference_leaves_the_dsn(url: str, dsn: str, reference: str) -> None:
    seen: list[str] = []
    address = PostgresAddress.parse(url, schema="x", passwords=partial(made, seen))
    assert (address.dsn, seen) == (dsn, [reference])
    with pytest.raises(StoreUrlInvalid, match="refers to a secret"):
        PostgresAddress.parse(url, schema="x")
    assert reference not in repr(address)


def test_a_password_that_is_none_stays() -> None:
    address = PostgresAddress.parse("postgresql://u:a:b@db/shop", schema="x", passwords=partial(made, []))
    assert address.passwords is None
    assert address.dsn == "postgresql://u:a:b@db/shop"
