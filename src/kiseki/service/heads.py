"""`Head`: what the header fields of a request say, read in one pass. Used by the HTTP apps."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any, Final

from kiseki.kernel.ports import Credentials, IdSource

__all__ = ["Head", "read_head"]

# https://www.w3.org/TR/trace-context/#traceparent-header; versions above 00 may carry more after the flags.
_TRACEPARENT: Final = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)
_CORRELATION: Final = re.compile(rb"[A-Za-z0-9._~-]{1,64}")
_DIGITS: Final = re.compile(rb"[0-9]{1,18}")

_FORWARDING: Final = frozenset(
    {
        b"forwarded",
        b"via",
        b"x-real-ip",
        b"x-client-ip",
        b"x-cluster-client-ip",
        b"true-client-ip",
        b"cf-connecting-ip",
    }
)


class Head:
    """The fields that kiseki reads. `repeated` names one that came more than once and must not."""

    __slots__ = (
        "accept",
        "asked_headers",
        "asked_method",
        "authorization",
        "bytes",
        "chunked",
        "consistency_token",
        "content_encoding",
        "content_length",
        "content_type",
        "correlation",
        "expects_continue",
        "forwarded",
        "forwarded_for",
        "host",
        "idempotency_key",
        "origin",
        "repeated",
        "traceparent",
        "unknown_coding",
    )

    def __init__(self) -> None:
        self.bytes = 0
        """Size of all fields as sent, line ends included."""
        self.host: bytes | None = None
        self.origin: bytes | None = None
        self.asked_method: bytes | None = None
        self.asked_headers: bytes | None = None
        self.authorization: tuple[bytes, ...] = ()
        self.accept: bytes | None = None
        self.content_type: bytes | None = None
        self.content_encoding: bytes | None = None
        self.content_length: bytes | None = None
        self.chunked = False
        self.unknown_coding = False
        self.expects_continue = False
        self.forwarded = False
        self.forwarded_for: tuple[bytes, ...] = ()
        self.traceparent: bytes | None = None
        self.correlation: bytes | None = None
        self.idempotency_key: bytes | None = None
        self.consistency_token: bytes | None = None
        self.repeated: str | None = None

    def trace_id(self) -> str:
        """The caller's trace id (32 hex digits) if it sent a valid `traceparent`, else a new random one."""
        if self.traceparent is not None:
            match = _TRACEPARENT.fullmatch(self.traceparent)
            if match is not None and (match[1] != b"00" or match[3] is None):
                return match[2].decode()
        return os.urandom(16).hex()

    def correlation_id(self, ids: IdSource) -> str:
        """The caller's `X-Correlation-Id` if it is 1 to 64 of letters, digits and `. _ ~ -`, else a new ULID."""
        if self.correlation is not None and _CORRELATION.fullmatch(self.correlation):
            return self.correlation.decode()
        return ids.new_id()

    def declared_length(self) -> int | None:
        """The Content-Length, None when there is none that is a number (the server refuses those that are not)."""
        if self.content_length is None or not _DIGITS.fullmatch(self.content_length):
            return None
        return int(self.content_length)

    def credentials(self, peer: Any) -> Credentials:
        """What identity may look at. `peer` is ASGI's `client`."""
        return Credentials(
            authorization=self.authorization,
            peer=peer[0] if peer else None,
            host=None if self.host is None else self.host.decode("latin-1"),
            forwarded=self.forwarded,
        )


def read_head(fields: Iterable[tuple[bytes, bytes]]) -> Head:
    """Reads header fields (names in lower case). Never raises: what is wrong is for the app to refuse."""
    head = Head()
    size = 0
    for name, value in fields:
        size += len(name) + len(value) + 4
        known = _FIELDS.get(name)
        if known is not None:
            if known == "authorization":
                head.authorization += (value,)
                continue
            if getattr(head, known) is None:
                setattr(head, known, value)
            elif known in _LISTS:
                # A list field may be sent in parts (RFC 9110, 5.3).
                setattr(head, known, b"%s, %s" % (getattr(head, known), value))
            elif known in _IGNORED_WHEN_REPEATED:
                setattr(head, known, b"")
            else:
                head.repeated = name.decode()
        elif name == b"transfer-encoding":
            head.unknown_coding = head.chunked or value.strip().lower() != b"chunked"
            head.chunked = True
        elif name == b"expect":
            head.expects_continue = True
        elif name in _FORWARDING or name.startswith(b"x-forwarded"):
            head.forwarded = True
            if name == b"x-forwarded-for":
                head.forwarded_for += (value,)
    head.bytes = size
    return head


# W3C Trace Context asks to go on without a header that can't be trusted; a doubled one is such.
_IGNORED_WHEN_REPEATED: Final = frozenset({"traceparent", "correlation"})
_LISTS: Final = frozenset({"accept", "asked_headers"})
_FIELDS: Final = {
    b"host": "host",
    b"origin": "origin",
    b"access-control-request-method": "asked_method",
    b"access-control-request-headers": "asked_headers",
    b"authorization": "authorization",
    b"accept": "accept",
    b"content-type": "content_type",
    b"content-encoding": "content_encoding",
    b"content-length": "content_length",
    b"traceparent": "traceparent",
    b"x-correlation-id": "correlation",
    b"idempotency-key": "idempotency_key",
    b"kiseki-consistency-token": "consistency_token",
}
