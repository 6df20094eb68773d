"""A commit becomes an item of DynamoDB and a commit again, and no damage to the item goes unseen."""

from __future__ import annotations

import base64
import copy
import random
import zlib
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from kiseki.journal.dynamodb.items import (
    ITEM_BYTES,
    commit_item,
    commit_of,
    document_bytes,
    indexed_at,
    item_bytes,
    slice_of,
    timestamp,
)
from kiseki.journal.port import Commit, CommitTooLarge, CorruptJournal
from kiseki.kernel.codec import EncodedEvent
from kiseki.testing.journal_conformance import encoded, metadata

MOMENT = datetime(2026, 3, 1, 12, 0, 0, 120_000, tzinfo=UTC)


def commit(*events: EncodedEvent, stream: str = "Thing-1", first: int = 7) -> Commit:
    return Commit(
        stream=stream,
        first_sequence_number=first,
        metadata=metadata("A", at=MOMENT),
        events=events or (encoded("a"), encoded("b", subject="User-2")),
    )


def item_of(one: Commit) -> dict[str, Any]:
    return commit_item(one, document_bytes(one)).item


def noise(size: int) -> bytes:
    """JSON text that hardly gets smaller."""
    return b'"' + base64.b64encode(random.Random(7).randbytes(size * 3 // 4))[: size - 2] + b'"'


def test_the_item_has_the_attributes_that_are_fixed_for_ever() -> None:
    item = item_of(commit())
    assert item["persistence-id"] == {"S": "Thing-1"}
    assert item["sequence-nr"] == {"N": "7"}
    assert item["slice"] == {"N": str(zlib.crc32(b"Thing-1") % 64)}
    assert item["committed-at"] == {"S": "2026-03-01T12:00:00.120000+00:00"}
    assert item["committed-at-id"] == {"S": f"2026-03-01T12:00:00.120000+00:00#{'A':0>26}"}
    assert item["commit-id"] == {"S": f"{'A':0>26}"}
    assert (item["count"], item["format"]) == ({"N": "2"}, {"N": "1"})
    assert item["document"] == {"S": document_bytes(commit()).decode()}
    assert set(item) == {
        "persistence-id",
        "sequence-nr",
        "slice",
        "committed-at",
        "committed-at-id",
        "commit-id",
        "count",
        "format",
        "checksum",
        "document",
    }


def test_slices_are_fixed_for_ever() -> None:
    assert {name: slice_of(name) for name in ("Thing-1", "UserAccount-01J", "A-~")} == {
        "Thing-1": 17,
        "UserAccount-01J": 42,
        "A-~": 49,
    }


def test_times_sort_as_text() -> None:
    moments = [MOMENT + timedelta(microseconds=n) for n in (-120_000, -1, 0, 1, 880_000, 86_400_000_000)]
    texts = [timestamp(moment) for moment in moments]
    assert texts == sorted(texts)
    assert len({len(text) for text in texts}) == 1
    assert timestamp(MOMENT.astimezone(timezone(timedelta(hours=9)))) == timestamp(MOMENT)
    keys = [f"{text}#c" for text in texts]
    assert keys == sorted(keys)


@pytest.mark.parametrize(
    ("later", "is_made_then"), [(0, True), (300, True), (-300, True), (301, False), (-301, False), (1e8, False)]
)
def test_what_was_written_long_after_it_was_made_is_indexed_where_it_was_written(
    later: float, is_made_then: bool
) -> None:
    written_at = MOMENT + timedelta(seconds=later)
    assert indexed_at(MOMENT, written_at) == (MOMENT if is_made_then else written_at)
    one = commit()
    item = commit_item(one, document_bytes(one), written_at=written_at).item
    assert item["committed-at"] == {"S": timestamp(MOMENT)}
    assert item["committed-at-id"]["S"].startswith(timestamp(MOMENT if is_made_then else written_at) + "#")
    assert commit_of(item) == one


@pytest.mark.parametrize("size", [1, 3_000, 5_000, 200_000])
@pytest.mark.parametrize("compressible", [True, False])
def test_a_commit_comes_back(size: int, compressible: bool) -> None:
    one = commit(encoded("a", data=b'"' + b"x" * size + b'"' if compressible else noise(size + 3)))
    item = item_of(one)
    assert ("compression" in item) == (size >= 5_000)
    assert commit_of(item) == one
    assert commit_of(msgspec.json.decode(msgspec.json.encode(item))) == one


def test_what_is_compressed_takes_less_room() -> None:
    one = commit(encoded("a", data=b'"' + b"x" * 900_000 + b'"'))
    assert item_bytes(item_of(one)) < 10_000


def test_what_is_over_the_limit_of_an_item_is_refused_with_the_limit() -> None:
    with pytest.raises(
        CommitTooLarge, match=r"^Thing-1: \d+ compressed bytes in one commit; a DynamoDB item holds 409600$"
    ):
        item_of(commit(encoded("a", data=noise(600_000))))
    assert item_bytes(item_of(commit(encoded("a", data=noise(500_000))))) <= ITEM_BYTES


def test_the_size_of_an_item_is_never_counted_too_small() -> None:
    item = {"name": {"S": "\u8ecc"}, "number": {"N": "12"}, "bytes": {"B": base64.b64encode(b"12345").decode()}}
    assert item_bytes(item) >= len("namenumberbytes") + 3 + 2 + 5
    assert ITEM_BYTES == 409_600


_WRONG: dict[str, Any] = {
    "another stream": ("persistence-id", {"S": "Thing-2"}),
    "another number": ("sequence-nr", {"N": "8"}),
    "no number": ("sequence-nr", {"S": "7"}),
    "a number that is none": ("sequence-nr", {"N": "seven"}),
    "another slice": ("slice", {"N": "1"}),
    "another count": ("count", {"N": "3"}),
    "another commit id": ("commit-id", {"S": "other"}),
    "a later format": ("format", {"N": "2"}),
    "another checksum": ("checksum", {"S": "0" * 16}),
    "another document": ("document", {"S": "{}"}),
    "a document of another kind": ("document", {"N": "1"}),
    "a document with a lone surrogate": ("document", {"S": "\ud800"}),
    "compression that is none": ("compression", {"S": "zlib"}),
    "compression that is unknown": ("compression", {"S": "zstd"}),
}


@pytest.mark.parametrize("wrong", _WRONG)
def test_a_changed_attribute_is_found(wrong: str) -> None:
    item = item_of(commit())
    name, value = _WRONG[wrong]
    with pytest.raises(CorruptJournal):
        commit_of({**item, name: value})


@pytest.mark.parametrize(
    "name", ["persistence-id", "sequence-nr", "slice", "commit-id", "count", "format", "checksum", "document"]
)
def test_a_missing_attribute_is_found(name: str) -> None:
    item = item_of(commit())
    del item[name]
    with pytest.raises(CorruptJournal):
        commit_of(item)


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[:-4],
        lambda packed: packed + b"more",
        lambda packed: b"",
        lambda packed: b"\0" + packed[1:],
        lambda packed: zlib.compress(b"{}"),
    ],
)
def test_damage_to_compressed_documents_is_found(damage: Any) -> None:
    item = copy.deepcopy(item_of(commit(encoded("a", data=b'"' + b"x" * 50_000 + b'"'))))
    packed = base64.b64decode(item["document"]["B"])
    item["document"]["B"] = base64.b64encode(damage(packed)).decode()
    with pytest.raises(CorruptJournal):
        commit_of(item)
    item["document"]["B"] = "no base64!"
    with pytest.raises(CorruptJournal):
        commit_of(item)
