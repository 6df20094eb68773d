"""`DynamoDbAddress`: which tables, in which region, reached where. Used by everything that is on DynamoDB."""

from __future__ import annotations

import ipaddress
import re
from typing import Final, Self
from urllib.parse import SplitResult, parse_qsl, urlsplit

import msgspec

from kiseki.clients.urls import StoreUrlInvalid

__all__ = ["DynamoDbAddress"]

_PREFIX: Final = re.compile(r"[a-zA-Z0-9_.-]{1,100}")
_REGION: Final = re.compile(r"[a-z]{2,4}(-[a-z]+)+-[0-9]{1,2}")
_FORM: Final = "dynamodb://<prefix>?region=<region>[&endpoint=<http URL>]"


class DynamoDbAddress(msgspec.Struct, frozen=True):
    """The tables `<prefix>-<name>` of one account and region."""

    prefix: str
    region: str
    endpoint: str | None = None
    """Scheme, host and port of something else than AWS's public endpoint; None for that one."""

    @classmethod
    def parse(cls, url: str) -> Self:
        """From `dynamodb://<prefix>?region=<region>[&endpoint=<http URL>]`. Raises StoreUrlInvalid."""
        parts = _parts(url)
        if parts is None or parts.scheme != "dynamodb":
            raise StoreUrlInvalid(f"the URL of DynamoDB tables is {_FORM}")
        if parts.path not in ("", "/") or parts.fragment:
            raise StoreUrlInvalid(f"the URL of DynamoDB tables has no path and no fragment: {_FORM}")
        if not _PREFIX.fullmatch(parts.netloc):
            raise StoreUrlInvalid("the prefix of DynamoDB tables has 1 to 100 of the characters a-z A-Z 0-9 _ . -")
        given = parse_qsl(parts.query, keep_blank_values=True)
        parameters = dict(given)
        if len(parameters) < len(given) or not parameters.keys() <= {"region", "endpoint"}:
            raise StoreUrlInvalid("the URL of DynamoDB tables has the parameters region and endpoint, each once")
        region = parameters.get("region", "")
        if not _REGION.fullmatch(region):
            raise StoreUrlInvalid("the URL of DynamoDB tables needs a region, such as region=eu-west-1")
        endpoint = parameters.get("endpoint")
        return cls(parts.netloc, region, None if endpoint is None else _endpoint(endpoint))

    def table(self, name: str) -> str:
        """The full name of a table."""
        return f"{self.prefix}-{name}"

    @property
    def is_loopback(self) -> bool:
        """Whether the endpoint is on this machine: an emulator."""
        host = urlsplit(self.endpoint or "").hostname
        if host is None or host == "localhost":
            return host is not None
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    @property
    def service_url(self) -> str:
        """Where requests about tables go."""
        return self.endpoint or f"https://dynamodb.{self.region}.{self._domain}"

    @property
    def streams_url(self) -> str:
        """Where requests about streams go."""
        return self.endpoint or f"https://streams.dynamodb.{self.region}.{self._domain}"

    @property
    def _domain(self) -> str:
        return "amazonaws.com.cn" if self.region.startswith("cn-") else "amazonaws.com"


def _endpoint(url: str) -> str:
    parts = _parts(url)
    if (
        parts is None
        or parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.username is not None
        or parts.path not in ("", "/")
        or parts.query
        or parts.fragment
    ):
        raise StoreUrlInvalid("the endpoint of DynamoDB is http:// or https:// with a host and perhaps a port")
    return f"{parts.scheme}://{parts.netloc}"


def _parts(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # looked at only now
    except ValueError:
        return None
    return parts
