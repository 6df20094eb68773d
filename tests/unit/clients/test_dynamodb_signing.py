"""Requests are signed as botocore signs them."""

from __future__ import annotations

from datetime import UTC, datetime

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from kiseki.clients.aws_signing import AwsKeys, Signer

NOW = datetime(2026, 3, 1, 12, 34, 56, tzinfo=UTC)
KEYS = AwsKeys("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
SESSION_KEYS = AwsKeys("ASIAEXAMPLE", "secret/+=", "FwoGZXIvYXdzEJr//////////wEaDExample+/=")


def botocores(
    monkeypatch: pytest.MonkeyPatch, keys: AwsKeys, *, url: str, target: str, body: bytes, now: datetime
) -> dict[str, str]:
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: now.replace(tzinfo=None))
    request = AWSRequest(
        "POST", url, headers={"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": target}, data=body
    )
    botocore.auth.SigV4Auth(
        Credentials(keys.access_key, keys.secret_key, keys.token), "dynamodb", "eu-west-1"
    ).add_auth(request)
    return dict(request.headers.items())


@pytest.mark.parametrize("keys", [KEYS, SESSION_KEYS], ids=["long-lived", "session"])
@pytest.mark.parametrize("body", [b"{}", b"", '{"x": "\u3042"}'.encode()], ids=["empty", "none", "unicode"])
@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://dynamodb.eu-west-1.amazonaws.com/", "dynamodb.eu-west-1.amazonaws.com"),
        ("http://127.0.0.1:8000/", "127.0.0.1:8000"),
    ],
)
def test_the_signature_is_botocores(
    monkeypatch: pytest.MonkeyPatch, keys: AwsKeys, body: bytes, url: str, host: str
) -> None:
    target = "DynamoDB_20120810.PutItem"
    mine = Signer(region="eu-west-1", service="dynamodb").headers(keys, host=host, target=target, body=body, now=NOW)
    theirs = botocores(monkeypatch, keys, url=url, target=target, body=body, now=NOW)
    assert {name: value for name, value in mine.items() if name != "Host"} == theirs
    assert mine["Host"] == host


def test_another_day_and_other_keys_are_another_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    signer = Signer(region="eu-west-1", service="dynamodb")
    url, host, target = "http://127.0.0.1:8000/", "127.0.0.1:8000", "DynamoDB_20120810.GetItem"
    midnight = datetime(2026, 3, 2, tzinfo=UTC)
    for keys, now in ((KEYS, NOW), (KEYS, midnight), (SESSION_KEYS, midnight), (KEYS, midnight), (KEYS, NOW)):
        mine = signer.headers(keys, host=host, target=target, body=b"{}", now=now)
        theirs = botocores(monkeypatch, keys, url=url, target=target, body=b"{}", now=now)
        assert mine["Authorization"] == theirs["Authorization"]


def test_keys_do_not_show() -> None:
    assert repr(SESSION_KEYS) == str(SESSION_KEYS) == "AwsKeys(...)"
