"""AWS Signature Version 4 for services whose requests are all `POST /`, and for tokens of RDS.

Used by the clients of AWS.

https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html. The general signers cost many times as much
because they take any request; the tests compare this one with botocore's.
"""

from __future__ import annotations

import hmac
from datetime import datetime
from hashlib import sha256
from typing import Final
from urllib.parse import quote

import msgspec

__all__ = ["AwsKeys", "Signer", "presigned"]

_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_CONTENT_TYPE: Final = "application/x-amz-json-1.0"


class AwsKeys(msgspec.Struct, frozen=True):
    """What requests are signed with."""

    access_key: str
    secret_key: str
    token: str | None = None
    """Of temporary credentials."""

    def __repr__(self) -> str:
        return "AwsKeys(...)"


class Signer:
    """Signs for one region and service; the key of the day is derived once."""

    def __init__(self, *, region: str, service: str, content_type: str = _CONTENT_TYPE) -> None:
        """`content_type` as the service's protocol wants it."""
        self._region = region
        self._service = service
        self._content_type = content_type
        self._derived: tuple[AwsKeys, str] | None = None
        self._day_key = b""

    def headers(self, keys: AwsKeys, *, host: str, target: str, body: bytes, now: datetime) -> dict[str, str]:
        """The headers of a signed request. `host` as the Host header will be; `now` in UTC."""
        at = now.strftime("%Y%m%dT%H%M%SZ")
        day = at[:8]
        token_line, token_name = (
            ("", "")
            if keys.token is None
            else (
                f"x-amz-security-token:{keys.token}\n",
                "x-amz-security-token;",
            )
        )
        names = f"content-type;host;x-amz-date;{token_name}x-amz-target"
        canonical = (
            f"POST\n/\n\ncontent-type:{self._content_type}\nhost:{host}\nx-amz-date:{at}\n{token_line}"
            f"x-amz-target:{target}\n\n{names}\n{sha256(body).hexdigest()}"
        )
        scope = f"{day}/{self._region}/{self._service}/aws4_request"
        to_sign = f"{_ALGORITHM}\n{at}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
        signature = hmac.digest(self._key(keys, day), to_sign.encode(), "sha256").hex()
        headers = {
            "Host": host,
            "Content-Type": self._content_type,
            "X-Amz-Date": at,
            "X-Amz-Target": target,
            "Authorization": (
                f"{_ALGORITHM} Credential={keys.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
            ),
        }
        if keys.token is not None:
            headers["X-Amz-Security-Token"] = keys.token
        return headers

    def _key(self, keys: AwsKeys, day: str) -> bytes:
        if self._derived is None or self._derived[1] != day or self._derived[0] != keys:
            self._day_key = _day_key(keys, day, self._region, self._service)
            self._derived = (keys, day)
        return self._day_key


def presigned(
    keys: AwsKeys, *, host: str, service: str, region: str, parameters: dict[str, str], now: datetime, seconds: int
) -> str:
    """`host/?query` of a `GET /` that may be sent within so many seconds of `now` (UTC), without a scheme."""
    at = now.strftime("%Y%m%dT%H%M%SZ")
    day = at[:8]
    scope = f"{day}/{region}/{service}/aws4_request"
    query = {
        **parameters,
        "X-Amz-Algorithm": _ALGORITHM,
        "X-Amz-Credential": f"{keys.access_key}/{scope}",
        "X-Amz-Date": at,
        "X-Amz-Expires": str(seconds),
        "X-Amz-SignedHeaders": "host",
    }
    if keys.token is not None:
        query["X-Amz-Security-Token"] = keys.token
    pairs = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in query.items())
    line = "&".join(f"{name}={value}" for name, value in pairs)
    canonical = f"GET\n/\n{line}\nhost:{host}\n\nhost\n{sha256(b'').hexdigest()}"
    to_sign = f"{_ALGORITHM}\n{at}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
    signature = hmac.digest(_day_key(keys, day, region, service), to_sign.encode(), "sha256").hex()
    return f"{host}/?{line}&X-Amz-Signature={signature}"


def _day_key(keys: AwsKeys, day: str, region: str, service: str) -> bytes:
    key = f"AWS4{keys.secret_key}".encode()
    for part in (day, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
