"""The lines of the ledger of erasures, and the chain that binds each to all before it. Pure; used by the ledger.

A line holds names of streams (pseudonyms) and times, nothing personal. Its MAC (HMAC-SHA-256) covers the MAC of the
line before, so a line that was altered, moved, taken out or put in between is found. A cut at the end is found by the
mark, by the key store's tombstones, and by the audit log.
"""

from __future__ import annotations

import hmac
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

import msgspec

from kiseki.kernel.errors import KisekiError

__all__ = ["BEGINNING", "Kind", "LedgerBroken", "Line", "Mark", "check_line", "check_mark", "new_line", "new_mark"]

BEGINNING: Final = ""
"""The MAC before the first line."""

_LINE: Final = b"kiseki-erasure-line-1|"
_MARK: Final = b"kiseki-erasure-mark-1|"


class LedgerBroken(KisekiError):
    """The ledger is not what was written. Never ignored: restore it from its own copy, or find out who changed it."""

    code = "ERASURE_LEDGER_BROKEN"


class Kind(StrEnum):
    """What a line says."""

    OPENED = "opened"
    """The first line: which key store the ledger belongs to."""
    ERASE = "erase"
    """An erasure was decided and begins."""
    DONE = "done"
    """The keys of the subject are destroyed."""
    WITHDRAWN = "withdrawn"
    """An erasure that never became a fact, because the decider said no in the end."""


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line. Lines are numbered 1, 2, 3 … without gaps."""

    number: int
    kind: Kind
    at: datetime
    """UTC, in microseconds."""
    subject: str = ""
    """Of the first line: the id of the key store."""
    stream: str = ""
    command: str = ""
    refers: int = 0
    """Of `done` and `withdrawn`: the number of the line that began it."""
    mac: str = ""


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """How far the ledger was proved to be in force, and what the key store said then."""

    number: int
    """All erasures up to this line are in force or withdrawn."""
    line_mac: str
    key_mark: int
    """How many erasures the key store knew: a restored older one knows fewer."""
    settled: tuple[int, ...] = ()
    """Lines whose fact the journal lost and does not take again; their keys are gone, and read
    models were built anew."""
    mac: str = ""


_encode: Final = msgspec.json.Encoder(order="deterministic").encode


def new_line(
    key: bytes,
    before: Line | None,
    *,
    kind: Kind,
    at: datetime,
    subject: str,
    stream: str = "",
    command: str = "",
    refers: int = 0,
) -> Line:
    """The line that follows another one."""
    line = Line(
        number=1 if before is None else before.number + 1,
        kind=kind,
        at=at.astimezone(UTC),
        subject=subject,
        stream=stream,
        command=command,
        refers=refers,
    )
    return msgspec.structs.replace(line, mac=_mac_of(key, line, BEGINNING if before is None else before.mac))


def check_line(key: bytes, before: Line | None, line: Line) -> None:
    """Raises LedgerBroken unless this line follows that one (None: it is the first)."""
    number, mac = (0, BEGINNING) if before is None else (before.number, before.mac)
    if line.number != number + 1:
        raise LedgerBroken(f"the ledger of erasures lacks line {number + 1}: restore it from its own copy")
    if not hmac.compare_digest(line.mac.encode(), _mac_of(key, line, mac).encode()):
        raise LedgerBroken(
            f"line {line.number} of the ledger of erasures, or the one before it, was altered: restore it from its own "
            "copy"
        )


def new_mark(key: bytes, line: Line, key_mark: int, settled: tuple[int, ...] = ()) -> Mark:
    """The mark that everything up to a line is in force."""
    mark = Mark(number=line.number, line_mac=line.mac, key_mark=key_mark, settled=settled)
    return msgspec.structs.replace(mark, mac=_mark_mac(key, mark))


def check_mark(key: bytes, mark: Mark) -> bool:
    """Whether it is one that this ledger's key made; another is as good as none."""
    return hmac.compare_digest(mark.mac.encode(), _mark_mac(key, mark).encode())


def _mac_of(key: bytes, line: Line, before: str) -> str:
    plain = _encode(msgspec.structs.replace(line, mac=""))
    return hmac.digest(key, _LINE + before.encode() + b"|" + plain, "sha256").hex()


def _mark_mac(key: bytes, mark: Mark) -> str:
    plain = _encode(msgspec.structs.replace(mark, mac=""))
    return hmac.digest(key, _MARK + plain, "sha256").hex()
