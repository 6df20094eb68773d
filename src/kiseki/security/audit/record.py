"""Records of the audit log: one line of ASCII JSON each, chained by a MAC. Used by the log, and by what reads it.

A line ends with its MAC, which covers every byte before it: format, key, writer, number, and the MAC of the record
before. Nothing has to be encoded again to verify it. Lines are ASCII, so that no control character, line separator or
change of direction in what a client sent can pretend to be another line, in whatever program shows them. A line is
shorter than what a pipe takes in one piece (PIPE_BUF, 4,096 bytes), so those of several processes never mix.
"""

from __future__ import annotations

import hmac
import json
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec

from kiseki.kernel.ports import AuditEvent
from kiseki.security.audit.key import MAC_HEX, AuditKey, AuditKeys
from kiseki.security.masking import Masker

__all__ = [
    "FIRST_PREVIOUS",
    "LONGEST_LINE",
    "AuditRecord",
    "Chain",
    "Entry",
    "Head",
    "KeyUnknown",
    "RecordProblem",
    "SealedRecord",
    "bounded",
    "line_of",
    "read_line",
    "split_line",
    "when",
]

FORMAT: Final = 1
FIRST_PREVIOUS: Final = "0" * MAC_HEX
LONGEST_LINE: Final = 4_000

_MAC_MARK: Final = b',"mac":"'
_TAIL: Final = len(_MAC_MARK) + MAC_HEX + len(b'"}')

_LIMITS: Final = {
    "kind": 64,
    "outcome": 16,
    "actor": 64,
    "issuer": 256,
    "subject": 256,
    "address": 64,
    "api": 32,
    "operation": 200,
    "target": 256,
    "code": 64,
    "trace_id": 64,
    "detail": 600,
}
"""Characters of each text; what is longer is cut and ends with an ellipsis."""


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The last record of a writer, as somebody else saw it."""

    writer: str
    number: int
    mac: str


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes a record: an event, when it happened, and how often."""

    event: AuditEvent
    at: datetime
    count: int = 1
    first_at: datetime | None = None
    last_at: datetime | None = None
    operations: tuple[str, ...] = ()
    after: Head | None = None


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A record as it is stored. Times are ISO 8601, UTC, microseconds."""

    v: int
    key: str
    """The id of the key of its MAC."""
    writer: str
    """One run of one process."""
    number: int
    """1, 2, 3 … of this writer, without gaps."""
    at: datetime
    """When it was recorded: the event itself, or for a sum the end of its window."""
    kind: str
    outcome: str
    actor: str | None = None
    issuer: str | None = None
    subject: str | None = None
    address: str | None = None
    """In a sum of different addresses of one IPv6 network: the network, such as 2001:db8:1:2::/64."""
    api: str | None = None
    operation: str | None = None
    operations: tuple[str, ...] = ()
    """In a sum of different operations: some of them."""
    target: str | None = None
    code: str | None = None
    trace_id: str | None = None
    detail: str | None = None
    count: int = 1
    """How many events this record stands for; above 1 it sums the repeats of an earlier record."""
    first_at: datetime | None = None
    last_at: datetime | None = None
    after: Head | None = None
    """In the first record of a writer: the newest record that it found of another one."""
    previous: str
    """The MAC of the record before; zeros in the first."""
    mac: str


class SealedRecord(NamedTuple):
    """A record ready to be written."""

    number: int
    mac: str
    at: datetime
    kind: str
    line: bytes
    """Without a newline."""


class RecordProblem(ValueError):
    """A line that is not an authentic record; the message says what is wrong with it."""


class KeyUnknown(RecordProblem):
    """A line names a key that is not here."""


class Chain:
    """Makes the records of one writer, each bound to the one before."""

    def __init__(self, key: AuditKey, writer: str) -> None:
        self._key = key
        self.writer = writer
        self.number = 0
        self.mac = FIRST_PREVIOUS

    def seal(self, entry: Entry) -> SealedRecord:
        """The next record."""
        number = self.number + 1
        head = {"v": FORMAT, "key": self._key.id, "writer": self.writer, "number": number, "at": when(entry.at)}
        body = _body(head, entry, self.mac)
        mac = self._key.of_record(body)
        line = line_of(body, mac)
        self.number, self.mac = number, mac
        return SealedRecord(number, mac, entry.at, entry.event.kind, line)

    def head(self) -> Head:
        """The last record made."""
        return Head(writer=self.writer, number=self.number, mac=self.mac)


def bounded(event: AuditEvent, masker: Masker) -> AuditEvent:
    """The event with texts of bounded length, without lone surrogates and what looks like a secret."""
    changed = {}
    for name, limit in _LIMITS.items():
        value = getattr(event, name)
        if value is None:
            continue
        # First roughly, so that masking has a bound too; a secret that the cut would halve is still seen whole.
        text = str(value)[: limit * 4]
        text = masker.mask(text.encode("utf-8", "replace").decode())
        text = text if len(text) <= limit else f"{text[: limit - 1]}…"
        if text != value:
            changed[name] = text
    return msgspec.structs.replace(event, **changed) if changed else event


def line_of(body: bytes, mac: str) -> bytes:
    """The line of a body that still lacks its MAC."""
    return b'%b%b%b"}' % (body, _MAC_MARK, mac.encode())


def split_line(line: bytes) -> tuple[bytes, bytes]:
    """The bytes that a MAC covers, and the MAC. Raises RecordProblem."""
    body, mark, mac = line[:-_TAIL], line[-_TAIL : -_TAIL + len(_MAC_MARK)], line[-_TAIL + len(_MAC_MARK) : -2]
    if not body or mark != _MAC_MARK or not line.endswith(b'"}'):
        raise RecordProblem("it is not a record")
    return body, mac


def read_line(line: bytes, keys: AuditKeys) -> AuditRecord:
    """The record of a line, which is authentic. Raises RecordProblem."""
    body, mac = split_line(line)
    key_id = body[14:30].decode("ascii", "replace") if body.startswith(b'{"v":1,"key":"') else ""
    key = keys.get(key_id)
    if key is None:
        raise KeyUnknown("it was written with a key that is not here, or altered")
    if not hmac.compare_digest(key.of_record(body).encode(), mac):
        raise RecordProblem("it was altered, or forged")
    try:
        return _decoder.decode(line)
    except msgspec.DecodeError as problem:  # authentic, so from a release that knows more
        raise RecordProblem("it is of a release that this one can't read") from problem


def when(moment: datetime) -> str:
    """A time as it stands in records: always with six digits, so that text sorts as time does."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _body(head: dict[str, Any], entry: Entry, previous: str) -> bytes:
    limit = 1_000
    while True:
        fields = dict(head)
        for name in _LIMITS:
            value = getattr(entry.event, name)
            if value is not None:
                fields[name] = value if len(value) <= limit else f"{value[: limit - 1]}…"
        if entry.operations:
            fields["operations"] = [operation[:limit] for operation in entry.operations]
        if entry.count != 1:
            fields["count"] = entry.count
        if entry.first_at is not None:
            fields["first_at"] = when(entry.first_at)
        if entry.last_at is not None:
            fields["last_at"] = when(entry.last_at)
        if entry.after is not None:
            fields["after"] = msgspec.to_builtins(entry.after)
        fields["previous"] = previous
        # DEL is ASCII and still no character for a terminal.
        text = _encoder.encode(fields)[:-1].replace("\x7f", "\\u007f")
        # Outside ASCII a character takes six or twelve bytes.
        if len(text) + _TAIL <= LONGEST_LINE:
            return text.encode("ascii")
        limit //= 2


_encoder: Final = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), allow_nan=False)
_decoder: Final = msgspec.json.Decoder(AuditRecord)
