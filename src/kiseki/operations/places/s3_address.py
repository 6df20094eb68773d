"""`S3Address`: which bucket, in which region, under which prefix, encrypted how. Used by the place on S3."""

from __future__ import annotations

import re
from typing import Final, Self
from urllib.parse import SplitResult, parse_qsl, urlsplit

import msgspec

from kiseki.clients.urls import StoreUrlInvalid
from kiseki.operations.errors import OperationFailed
from kiseki.operations.places.names import checked_name

__all__ = ["S3Address"]

_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_REGION: Final = re.compile(r"[a-z]{2,4}(-[a-z]+)+-[0-9]{1,2}")
_KMS: Final = re.compile(r"[A-Za-z0-9:/_-]{1,300}")
_FORM: Final = "s3://<bucket>/<prefix>?region=<region>[&kms=<key>][&endpoint=<http URL>]"


class S3Address(msgspec.Struct, frozen=True):
    """Everything under a prefix of one bucket."""

    bucket: str
    prefix: str
    """Without slashes at its ends; empty for the whole bucket."""
    region: str
    kms: str | None = None
    """The key of KMS that objects are encrypted with; None for a key of S3's own (AES-256)."""
    endpoint: str | None = None
    """Scheme, host and port of something else than AWS's public endpoint; None for that one."""

    @classmethod
    def parse(cls, url: str) -> Self:
        """From `s3://<bucket>/<prefix>?region=<region>[&kms=<key>][&endpoint=<http URL>]`. Raises StoreUrlInvalid."""
        parts = _parts(url)
        if parts is None or parts.scheme != "s3" or parts.fragment:
            raise StoreUrlInvalid(f"the URL of a place on S3 is {_FORM}")
        if not _BUCKET.fullmatch(parts.netloc):
            raise StoreUrlInvalid(f"a bucket of S3 has 3 to 63 of the characters a-z 0-9 . -, and no user: {_FORM}")
        prefix = parts.path.strip("/")
        try:
            if prefix:
                checked_name(prefix)
        except OperationFailed as problem:
            raise StoreUrlInvalid(
                "the prefix of a place on S3 has parts of a-z A-Z 0-9 _ . , = + @ : - that do not begin with a dot"
            ) from problem
        given = parse_qsl(parts.query, keep_blank_values=True)
        parameters = dict(given)
        if len(parameters) < len(given) or not parameters.keys() <= {"region", "kms", "endpoint"}:
            raise StoreUrlInvalid("the URL of a place on S3 has the parameters region, kms and endpoint, each once")
        region = parameters.get("region", "")
        if not _REGION.fullmatch(region):
            raise StoreUrlInvalid("the URL of a place on S3 needs a region, such as region=eu-west-1")
        kms = parameters.get("kms")
        if kms is not None and not _KMS.fullmatch(kms):
            raise StoreUrlInvalid("kms in the URL of a place on S3 is the id, the ARN or the alias of a key")
        endpoint = parameters.get("endpoint")
        return cls(parts.netloc, prefix, region, kms, None if endpoint is None else _endpoint(endpoint))

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"s3://{self.bucket}/{self.prefix}".removesuffix("/")

    def key(self, name: str) -> str:
        """The key of an object; of all of them when the name is empty."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def name(self, key: str) -> str:
        """The name that a key of this place has."""
        return key[len(self.prefix) + 1 :] if self.prefix else key


def _endpoint(url: str) -> str:
    parts = _parts(url)
    plain = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
    if parts is None or not plain or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise StoreUrlInvalid("the endpoint of S3 is http:// or https:// with a host and perhaps a port")
    return f"{parts.scheme}://{parts.netloc}"


def _parts(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # looked at only now
    except ValueError:
        return None
    return parts
