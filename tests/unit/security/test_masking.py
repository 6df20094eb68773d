"""Masking: every form of a secret goes, whatever is around it, and ordinary lines stay as they are, at little cost."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import structlog

from kiseki.security.masking import MASK, Masker

JWT = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJzb21lYm9keSJ9.S1gnatureS1gnatureS1gnature"
PEM = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIHidden\n-----END PRIVATE KEY-----"
AWS_SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".replace("EXAMPLE", "3xAMPL3")

SECRETS = [
    (f"Authorization: Bearer {JWT}", "S1gnature"),
    (f"authorization: bearer {JWT}", "eyJzdWI"),
    ("Authorization: Bearer opaque-token-1234567", "opaque-token"),
    ("header Bearer AbCdEf0123456789~+/=", "AbCdEf"),
    ("Authorization: Basic dXNlcjpwYXNzd29yZDEyMw==", "dXNlcj"),
    ("Authorization: AWS4-HMAC-SHA256 Credential=x", "AWS4-HMAC"),
    ("(b'authorization', b'Bearer opaque-token-1234567')", "opaque-token"),
    ('{"authorization": "Bearer opaque-token-1234567"}', "opaque-token"),
    (f"token {JWT} was refused", "S1gnature"),
    ("half a token eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9", "eyJhbG"),
    (f"{JWT}.{'x' * 50}.yy", "xxxx"),
    ("postgresql://kiseki:hunter22@db:5432/kiseki?sslmode=verify-full", "hunter22"),
    ("postgresql://kiseki:p@ss/wo:rd@db/kiseki", "p@ss"),
    ("postgresql://kiseki:p@ss/wo:rd@db/kiseki", "wo:rd"),
    ("rediss://:secret-of-redis@host:6379/0", "secret-of-redis"),
    ("https://user:p%40ss@host/", "p%40ss"),
    ("AKIAIOSFODNN7EXAMPLE", "IOSFODNN7"),
    ("key ASIAIOSFODNN7EXAMPLE of a role", "IOSFODNN7"),
    (f"secret {AWS_SECRET} of AWS", "wJalr"),
    (PEM, "Hidden"),
    (json.dumps({"key": PEM}), "Hidden"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIICutOff", "MIICutOff"),
    ("password=hunter22 user=x", "hunter22"),
    ("PGPASSWORD=hunter22", "hunter22"),
    ('{"password": "hunter 22"}', "hunter 22"),
    (json.dumps(json.dumps({"client_secret": "hunter22x"})), "hunter22x"),
    ("https://x/?access_token=abcdef123&x=1", "abcdef123"),
    ("X-Amz-Security-Token=FwoGZXIvYXdz", "FwoGZX"),
    ("vault_token: hvs.CAESIJ1234567", "CAESIJ"),
    ("{'secret': 'abcdefgh'}", "abcdefgh"),
]

INNOCENT = [
    "serving on http://127.0.0.1:18080 and http://127.0.0.1:18082",
    "parked UserAccount-01JQ0000000000000000000000 (UNKNOWN_EVENT)",
    'WWW-Authenticate: Bearer realm="kiseki"',
    "a bearer of news, basic instincts, token expired, secrets are kept, the password was wrong",
    "commit da39a3ee5e6b4b0d3255bfef95601890afd80709",
    "sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "mail somebody@example.com at http://example.com/path",
    "O'Brien 太郎 𠮷野 Владимир",
    "keys: 12, token_lifetime 3600, key not found: UserAccount-1",
    "/api/graphql/schema 200 0.002",
    "",
]


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_what_looks_like_a_secret_is_masked(text: str, secret: str) -> None:
    masked = Masker().mask(text)
    assert secret not in masked
    assert MASK in masked
    assert Masker().mask(masked) == masked


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_it_is_masked_in_the_midst_of_a_line_of_json_which_stays_one(text: str, secret: str) -> None:
    line = json.dumps({"message": f"before {text} after", "n": 1, "token": None, "secret": 12345})
    masked = Masker().mask(line)
    assert secret not in masked
    assert json.loads(masked)["n"] == 1


@pytest.mark.parametrize("text", INNOCENT)
def test_ordinary_text_stays(text: str) -> None:
    assert Masker().mask(text) == text


def test_what_is_around_a_secret_stays() -> None:
    assert Masker().mask("to postgresql://kiseki:hunter22@db:5432/x failed") == (
        f"to postgresql://kiseki:{MASK}@db:5432/x failed"
    )


@pytest.mark.parametrize(
    "form",
    [
        lambda secret: secret,
        lambda secret: quote(secret, safe=""),
        lambda secret: json.dumps({"x": secret}),
        lambda secret: json.dumps({"x": secret}, ensure_ascii=False),
        lambda secret: base64.b64encode(secret.encode()).decode(),
        lambda secret: base64.urlsafe_b64encode(secret.encode()).decode(),
        lambda secret: secret.encode().hex(),
    ],
)
def test_exact_secrets_are_masked_in_every_form(form: Any) -> None:
    masker = Masker()
    secret = 'gehört "nur" mir/ganz+allein'
    masker.add(secret)
    masked = masker.mask(f"before {form(secret)} after")
    assert form(secret) not in masked
    assert masked.startswith("before ")
    assert masked.endswith(" after")
    assert secret not in repr(masker)


def test_short_secrets_would_be_found_in_innocent_text_and_are_left() -> None:
    masker = Masker()
    masker.add("user")
    masker.add("")
    assert masker.mask("the user is here") == "the user is here"


def test_rotated_secrets_do_not_add_up() -> None:
    masker = Masker()
    for number in range(1_000):
        masker.add(f"a secret that was rotated {number}")
    assert len(masker._exact) <= 1_000
    assert masker.mask("a secret that was rotated 999") == MASK


def test_structured_logs_are_masked_in_fields_names_nests_and_tracebacks() -> None:
    masker = Masker()
    masker.add(b"exact-secret-of-this-process")
    lines: list[str] = []

    def keep(_logger: Any, _method: str, event: Any) -> Any:
        lines.append(event if isinstance(event, str) else str(event))
        raise structlog.DropEvent

    processors: list[Any] = [
        structlog.processors.format_exc_info,
        masker.processor,
        structlog.processors.JSONRenderer(),
        masker.processor,
        keep,
    ]
    log = structlog.wrap_logger(structlog.PrintLogger(), processors=processors)
    try:
        raise ValueError(f"can't connect to postgresql://u:hunter22@h with {JWT}")
    except ValueError:
        log.error(
            "failed with exact-secret-of-this-process",
            token="short",
            nested={"a": [JWT, ("x", {"password": "hunter22", "n": 1})]},
            raw=b"Bearer opaque-token-1234567",
            problem=ValueError(JWT),
            number=3,
            exc_info=True,
        )
    (line,) = lines
    for secret in ("hunter22", "S1gnature", "exact-secret", "short", "opaque-token"):
        assert secret not in line
    assert json.loads(line)["number"] == 3


HOSTILE = [
    "eyJ" * 40_000,
    "://" * 40_000,
    "://a:" * 25_000,
    "-----BEGIN A-----" * 6_000,
    "bearer " * 15_000,
    "bearer" + " " * 100_000,
    "authorization: " * 7_000,
    "password=" * 10_000,
    "token:" * 16_000,
    "secret" + "_" * 100_000,
    "secret_access_" * 7_000,
    "A" * 100_000,
    "Aa1" * 33_000 + "@://",
    "AKIA" * 25_000,
    '"-----BEGIN A-----' + "\\" * 100_000,
    "token" + "\\" * 100_000,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_masking_takes_time_in_proportion(text: str) -> None:
    """Twice the text may not take anything like four times as long: a ratio within one run, with much room."""

    def seconds(of: str) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            Masker().mask(of)
            times.append(time.perf_counter() - start)
        return min(times)

    short, long = seconds(text[: len(text) // 8]), seconds(text)
    assert long < 40 * short + 0.02


@pytest.fixture(autouse=True)
def _plain_structlog() -> Iterator[None]:
    yield
    structlog.reset_defaults()
