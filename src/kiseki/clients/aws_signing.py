"""AWS Signature Version 4 for one service whose requests are all `POST /`. Used by the DynamoDB client.

https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html. The general signers cost many times as much
because they take any request; the tests compare this one with botocore's.
"""

from __future__ import annotations

import hmac
from datetime import datetime
from hashlib import sha256
from typing import Final

import msgspec

__all__ = ["AwsKeys", "Signer"]

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

    def __init__(self, *, region: str, service: str) -> None:
        self._region = region
        self._service = service
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
            f"POST\n/\n\ncontent-type:{_CONTENT_TYPE}\nhost:{host}\nx-amz-date:{at}\n{token_line}"
            f"x-amz-target:{target}\n\n{names}\n{sha256(body).hexdigest()}"
        )
        scope = f"{day}/{self._region}/{self._service}/aws4_request"
        to_sign = f"{_ALGORITHM}\n{at}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
        signature = hmac.digest(self._key(keys, day), to_sign.encode(), "sha256").hex()
        headers = {
            "Host": host,
            "Content-Type": _CONTENT_TYPE,
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
            key = f"AWS4{keys.secret_key}".encode()
            for part in (day, self._region, self._service, "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._day_key = key
            self._derived = (keys, day)
        return self._day_key
