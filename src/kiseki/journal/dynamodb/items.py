"""The items of the DynamoDB journal: how a commit becomes one, and one becomes a commit again.

Used by the DynamoDB journal, and by whoever gets its stream records (`commit_of`), such as a Lambda function. Pure:
nothing here calls DynamoDB. Items are DynamoDB's own JSON, `{"S": "text"}`, `{"N": "1"}`, `{"B": "<base64>"}`.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from kiseki.journal.format import FORMAT, checksum, decode_commit, encode_commit
from kiseki.journal.port import Commit, CommitTooLarge, CorruptJournal

__all__ = [
    "BY_SLICE",
    "CHANGED_CLAIMS",
    "INDEX_KEY",
    "ITEM_BYTES",
    "SLICES",
    "CommitItem",
    "Place",
    "commit_item",
    "commit_of",
    "document_bytes",
    "indexed_at",
    "is_commit",
    "item_bytes",
    "item_of",
    "moment_of",
    "number_of",
    "place_of",
    "slice_of",
    "text_of",
    "timestamp",
]

SLICES: Final = 64
"""Parts of the index by time of writing; fixed for ever, because the number is stored with every commit."""
BY_SLICE: Final = "by-slice"
"""The index by time of writing: keys only, hash key `slice`, range key `INDEX_KEY`."""
INDEX_KEY: Final = "committed-at-id"
"""`<time>#<commit-id>`. The time is that of `indexed_at`; for all but imported commits it is when they were made."""
CHANGED_CLAIMS: Final = "claims"
"""What a commit does to claims. Only a restore reads it, whose copies of the two tables are not of one moment."""
ITEM_BYTES: Final = 400 * 1024
"""The most that DynamoDB keeps in one item, attribute names included."""

_AT_ONCE: Final = timedelta(minutes=5)
"""A commit is made and written within that, by clocks that agree about as much."""
_COMPRESSED_FROM: Final = 4_096
_EXPANDED_AT_MOST: Final = 64_000_000


class Place(NamedTuple):
    """Where a commit is: its stream, and the sequence number of its first event."""

    stream: str
    first_sequence_number: int


class CommitItem(NamedTuple):
    """A commit as DynamoDB keeps it."""

    item: dict[str, Any]
    checksum: str


def slice_of(stream: str) -> int:
    """The part of the index by time of writing that a stream is in, for ever."""
    return zlib.crc32(stream.encode()) % SLICES


def timestamp(moment: datetime) -> str:
    """A point in time as stored: UTC, microseconds, of constant width, so that text order is time order."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def indexed_at(committed_at: datetime, written_at: datetime) -> datetime:
    """Where a commit stands in the index: when it was made, unless it was clearly written at another time.

    An import keeps the times at which commits were made. Who reads the index since some moment, to see what was written
    since, would never meet those otherwise.
    """
    return committed_at if abs(written_at - committed_at) <= _AT_ONCE else written_at


def document_bytes(commit: Commit) -> bytes:
    """The document of a commit, as on every store."""
    return encode_commit(commit.metadata, commit.events)


def commit_item(
    commit: Commit,
    document: bytes,
    *,
    written_at: datetime | None = None,
    claims: Mapping[str, Any] | None = None,
) -> CommitItem:
    """The item of a commit; large documents are compressed, which may take 10 ms for each megabyte.

    `written_at` is AWS's time now; when it is not given, the commit is written when it is made. `claims` is the
    attribute that says what it does to claims, as `held` writes it.

    Raises CommitTooLarge when it is over what DynamoDB keeps in one item.
    """
    stream, first, about = commit.stream, commit.first_sequence_number, commit.metadata
    written = indexed_at(about.committed_at, written_at or about.committed_at)
    digest = checksum(stream, first, document)
    item: dict[str, Any] = {
        "persistence-id": {"S": stream},
        "sequence-nr": {"N": str(first)},
        "slice": {"N": str(slice_of(stream))},
        INDEX_KEY: {"S": f"{timestamp(written)}#{about.commit_id}"},
        "committed-at": {"S": timestamp(about.committed_at)},
        "commit-id": {"S": about.commit_id},
        "count": {"N": str(len(commit.events))},
        "format": {"N": str(FORMAT)},
        "checksum": {"S": digest},
    }
    packed = _packed(document)
    if packed is None:
        item["document"] = {"S": document.decode()}
    else:
        item["document"] = {"B": base64.b64encode(packed).decode("ascii")}
        item["compression"] = {"S": "zlib"}
    if claims:
        item[CHANGED_CLAIMS] = dict(claims)
    size = item_bytes(item)
    if size > ITEM_BYTES:
        raise CommitTooLarge(f"{stream}: {size} compressed bytes in one commit; a DynamoDB item holds {ITEM_BYTES}")
    return CommitItem(item, digest)


def _packed(document: bytes) -> bytes | None:
    """The compressed document, None when that is not worth it."""
    if len(document) < _COMPRESSED_FROM:
        return None
    packed = zlib.compress(document, 6)
    return packed if len(packed) < len(document) else None


def item_bytes(item: Mapping[str, Any]) -> int:
    """What an item counts for, never too little (numbers are counted by their text).

    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html
    """
    size = 0
    for name, value in item.items():
        ((kind, content),) = value.items()
        text = content if isinstance(content, str) else str(content)  # of items that are none of ours
        size += len(name.encode()) + (len(text) * 3 // 4 if kind == "B" else len(text.encode(errors="replace")) + 1)
    return size


def text_of(item: Mapping[str, Any], name: str) -> str:
    """An attribute that is text. Raises CorruptJournal when it is not there or something else."""
    value = item.get(name)
    text = value.get("S") if isinstance(value, Mapping) else None
    if not isinstance(text, str):
        raise CorruptJournal(f"an item of the journal has no text in {name}; run `kiseki journal verify`")
    return text


def number_of(item: Mapping[str, Any], name: str) -> int:
    """An attribute that is a whole number. Raises CorruptJournal when it is not there or something else."""
    value = item.get(name)
    text = value.get("N") if isinstance(value, Mapping) else None
    try:
        return int(text)  # type: ignore[arg-type]  # None is answered as other text that is no number
    except (TypeError, ValueError) as problem:
        raise CorruptJournal(
            f"an item of the journal has no number in {name}; run `kiseki journal verify`"
        ) from problem


def moment_of(item: Mapping[str, Any], name: str) -> datetime:
    """An attribute that is a point in time. Raises CorruptJournal when it is not there or something else."""
    try:
        return datetime.fromisoformat(text_of(item, name))
    except ValueError as problem:
        raise CorruptJournal(f"an item of the journal has no time in {name}; run `kiseki journal verify`") from problem


def place_of(item: Mapping[str, Any]) -> Place:
    """Where the commit of an item is. Raises CorruptJournal."""
    return Place(text_of(item, "persistence-id"), number_of(item, "sequence-nr"))


def is_commit(image: Mapping[str, Any]) -> bool:
    """Whether an item of the journal's table is a commit, which all are unless somebody put something else there."""
    return "persistence-id" in image and "document" in image


def commit_of(image: Mapping[str, Any]) -> Commit:
    """The commit of an item, such as the NewImage of a stream record.

    Raises CorruptJournal when checksum, form or the attributes beside the document are wrong.
    """
    stream, first = place_of(image)
    stored_format = number_of(image, "format")
    if stored_format != FORMAT:
        raise CorruptJournal(
            f"the commit of {stream} at sequence number {first} has format {stored_format}; this kiseki reads {FORMAT}"
        )
    commit = decode_commit(stream, first, _document(image, stream, first), text_of(image, "checksum"))
    beside = (number_of(image, "count"), text_of(image, "commit-id"), number_of(image, "slice"))
    if (len(commit.events), commit.metadata.commit_id, slice_of(stream)) != beside:
        raise CorruptJournal(f"the item of {stream} at sequence number {first} does not belong to its document")
    return commit


def _document(image: Mapping[str, Any], stream: str, first: int) -> bytes:
    damaged = f"the commit of {stream} at sequence number {first} is damaged; run `kiseki journal verify`"
    stored = image.get("document")
    value = stored if isinstance(stored, Mapping) else {}
    if "compression" not in image:
        text = value.get("S")
        if not isinstance(text, str):
            raise CorruptJournal(damaged)
        try:
            return text.encode()
        except UnicodeEncodeError as problem:
            raise CorruptJournal(damaged) from problem
    if text_of(image, "compression") != "zlib":
        raise CorruptJournal(f"the commit of {stream} at sequence number {first} is compressed in an unknown way")
    packed = value.get("B")
    if not isinstance(packed, str):
        raise CorruptJournal(damaged)
    expander = zlib.decompressobj()
    try:
        document = expander.decompress(base64.b64decode(packed, validate=True), _EXPANDED_AT_MOST)
    except (binascii.Error, ValueError, zlib.error) as problem:
        raise CorruptJournal(damaged) from problem
    if not expander.eof or expander.unused_data:
        raise CorruptJournal(damaged)
    return document


def item_of(answer: Mapping[str, Any]) -> dict[str, Any] | None:
    """The item in the answer of GetItem, None when there is none."""
    item = answer.get("Item")
    return item if isinstance(item, dict) and item else None
