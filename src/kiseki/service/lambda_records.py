"""The records of a DynamoDB Streams event, as what they say about the journal. Used by the Lambda handler.

Nothing in an event is believed: a record that can't be read names, if anything, a stream to read from the journal.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from kiseki.journal.port import Commit, CorruptJournal
from kiseki.kernel.streams import STREAM

__all__ = ["Counts", "Delivery", "deliveries_of", "stream_number"]

_log = logging.getLogger(__name__)

_TABLE_STREAM: Final = re.compile(r"arn:aws[a-z-]*:dynamodb:([a-z0-9-]+):[0-9]*:table/([a-zA-Z0-9_.-]+)/stream/.+")
_SHOWN: Final = 200


class Counts(msgspec.Struct, kw_only=True):
    """What became of the records of one event."""

    records: int = 0
    applied: int = 0
    """Events that were new, in each build that they were applied to."""
    skipped: int = 0
    """Events that had been applied before, wait behind a parked one, or concern no projection."""
    parked: int = 0
    """Streams that were parked."""
    reread: int = 0
    """Records whose image can't be read; their streams were read from the journal."""
    dropped: int = 0
    """Records that do not even name a stream; the sweeper finds what they were about."""
    foreign: int = 0
    """Records of another table."""
    tampered: int = 0
    """Items of the journal that were changed or removed. Nothing of kiseki's does that."""
    redelivered: int = 0
    """Records that were given back."""


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """A record that says that a stream has a commit."""

    place: int
    """Of the record in the event, from 0."""
    stream: str
    commit: Commit | None
    """None when the record can't be read: then the journal has it."""


def deliveries_of(
    records: Sequence[Any],
    *,
    table: str,
    region: str | None,
    commit_of: Callable[[Mapping[str, Any]], Commit],
    counts: Counts,
) -> list[Delivery]:
    """What a batch of records says, in its order; what is no news of the journal `table` is logged and counted.

    `commit_of` decodes an item in DynamoDB's JSON, and raises CorruptJournal.
    """
    counts.records += len(records)
    found = []
    for place, record in enumerate(records):
        body = _mapping(_mapping(record).get("dynamodb"))
        where = stream_number(record) or f"at place {place}"
        if not _is_of(record, table, region):
            counts.foreign += 1
            _log.error(
                "record %s is not from table %s but from %r; check the event source mapping",
                where,
                table,
                str(_mapping(record).get("eventSourceARN", ""))[:_SHOWN],
            )
            continue
        stream = _stream(body)
        event_name = _mapping(record).get("eventName")
        if event_name != "INSERT":
            counts.tampered += 1
            _log.error(
                "record %s is a %r of %s: an item of the journal was changed or removed, which nothing of kiseki's "
                "does; find out who may write to table %s and run `kiseki journal verify`",
                where,
                str(event_name)[:_SHOWN],
                stream or "an unknown stream",
                table,
            )
            continue
        delivery = _delivery(place, body, stream, where, commit_of)
        if delivery is None:
            counts.dropped += 1
            _log.error("record %s can't be read and names no stream; the sweeper applies what it was about", where)
            continue
        counts.reread += delivery.commit is None
        found.append(delivery)
    return found


def _is_of(record: Any, table: str, region: str | None) -> bool:
    match = _TABLE_STREAM.fullmatch(str(_mapping(record).get("eventSourceARN")))
    return match is not None and match[2] == table and region in (None, match[1])


def stream_number(record: Any) -> str | None:
    """The record's sequence number in the DynamoDB stream, by which Lambda is told what to deliver again."""
    number = _mapping(_mapping(record).get("dynamodb")).get("SequenceNumber")
    return number if isinstance(number, str) and number.isascii() and number.isdigit() else None


def _delivery(
    place: int,
    body: Mapping[str, Any],
    stream: str | None,
    where: str,
    commit_of: Callable[[Mapping[str, Any]], Commit],
) -> Delivery | None:
    try:
        # Its checksum is over its own key, so a whole image is right whatever stands beside it.
        commit = commit_of(_mapping(body.get("NewImage")))
    except Exception as problem:  # noqa: BLE001  # whatever garbage leads to, it is garbage
        why = str(problem) if isinstance(problem, CorruptJournal) else type(problem).__name__
        if stream is None:
            return None
        _log.warning("record %s of %s can't be read, so the journal is: %s", where, stream, why)
        return Delivery(place=place, stream=stream, commit=None)
    return Delivery(place=place, stream=commit.stream, commit=commit)


def _stream(body: Mapping[str, Any]) -> str | None:
    name = _mapping(_mapping(body.get("Keys")).get("persistence-id")).get("S")
    return name if isinstance(name, str) and STREAM.fullmatch(name) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
