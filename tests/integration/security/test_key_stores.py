"""What every key store promises, on each of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kiseki.security.key_store import KeyStore, MemoryKeyStore, Rewrapped, SubjectKeys, WrappedKey
from kiseki.security.sqlite_key_store import SqliteKeyStore

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
ANY_BYTES = bytes(range(256))


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[KeyStore]:
    opened: KeyStore = (
        MemoryKeyStore() if request.param == "memory" else await SqliteKeyStore.open(tmp_path / "keys.sqlite")
    )
    yield opened
    await opened.close()


def key(name: str) -> WrappedKey:
    return WrappedKey(name, name.encode() + ANY_BYTES)


async def test_keys_are_found_as_they_were_put(store: KeyStore) -> None:
    put = await store.insert({"A-1": key("k1"), "A-2": key("k2")})
    assert put == {"A-1": SubjectKeys((key("k1"),)), "A-2": SubjectKeys((key("k2"),))}
    assert await store.load(["A-2", "A-1", "A-3", "A-1"]) == put
    assert await store.load([]) == {}
    assert await store.insert({}) == {}


async def test_who_is_there_first_wins(store: KeyStore) -> None:
    await store.insert({"A-1": key("k1")})
    put = await store.insert({"A-1": key("k2"), "A-2": key("k3")})
    assert put == {"A-1": SubjectKeys((key("k1"),)), "A-2": SubjectKeys((key("k3"),))}


async def test_of_concurrent_insertions_one_wins_for_all(store: KeyStore) -> None:
    puts = await asyncio.gather(*(store.insert({"A-1": key(f"k{number}")}) for number in range(50)))
    assert len({put["A-1"].keys for put in puts}) == 1
    assert await store.load(["A-1"]) == puts[0]


async def test_an_erased_subject_has_a_tombstone_and_never_a_key(store: KeyStore) -> None:
    await store.insert({"A-1": key("k1"), "A-2": key("k2")})
    await store.erase("A-1", NOW)
    await store.erase("A-3", NOW)
    await store.erase("A-1", NOW + timedelta(days=1))
    put = await store.insert({subject: key("k3") for subject in ("A-1", "A-2", "A-3")})
    gone = SubjectKeys((), NOW)
    assert put == {"A-1": gone, "A-2": SubjectKeys((key("k2"),)), "A-3": gone}
    assert await store.load(["A-1", "A-3"]) == {"A-1": gone, "A-3": gone}


async def test_the_time_of_an_erasure_is_kept_in_utc(store: KeyStore) -> None:
    tokyo = datetime.fromisoformat("2026-03-01T21:00:00.123456+09:00")
    await store.erase("A-1", tokyo)
    assert str((await store.load(["A-1"]))["A-1"].erased_at) == "2026-03-01 12:00:00.123456+00:00"


async def test_erasures_are_told_once_after_a_mark(store: KeyStore) -> None:
    start = (await store.erasures(None)).mark
    assert await store.erasures(start) == ((), start)
    await store.erase("A-2", NOW)
    await store.erase("A-1", NOW)
    assert (await store.erasures(None)).subjects == ()
    subjects, mark = await store.erasures(start)
    assert set(subjects) == {"A-1", "A-2"}
    assert mark == (await store.erasures(None)).mark
    await store.erase("A-1", NOW)
    await store.erase("A-3", NOW)
    assert (await store.erasures(mark)).subjects == ("A-3",)


async def test_a_scan_gives_every_living_key_once(store: KeyStore) -> None:
    subjects = [f"A-{number}" for number in range(25)]
    await store.insert({subject: key(subject) for subject in subjects})
    await store.erase("A-7", NOW)
    pages = [page async for page in store.scan(10)]
    assert [len(page) for page in pages] == [10, 10, 4]
    assert sorted(row for page in pages for row in page) == sorted(
        (subject, key(subject)) for subject in subjects if subject != "A-7"
    )
    assert [page async for page in MemoryKeyStore().scan(10)] == []


async def test_a_wrapped_form_is_replaced_only_where_it_still_is(store: KeyStore) -> None:
    await store.insert({"A-1": key("k1"), "A-2": key("k2"), "A-3": key("k3")})
    await store.erase("A-2", NOW)
    changes = [
        Rewrapped("A-1", key("k1"), b"new and longer" * 50),
        Rewrapped("A-2", key("k2"), b"new"),
        Rewrapped("A-3", WrappedKey("k3", b"other"), b"new"),
        Rewrapped("A-4", key("k4"), b"new"),
    ]
    assert await store.replace(changes) == 1
    assert await store.replace(changes) == 0
    assert await store.load(["A-1", "A-2", "A-3", "A-4"]) == {
        "A-1": SubjectKeys((WrappedKey("k1", b"new and longer" * 50),)),
        "A-2": SubjectKeys((), NOW),
        "A-3": SubjectKeys((key("k3"),)),
    }
    assert await store.replace([Rewrapped("A-1", WrappedKey("k1", b"new and longer" * 50), b"again")]) == 1
    assert (await store.load(["A-1"]))["A-1"].keys == (WrappedKey("k1", b"again"),)
    pages = [page async for page in store.scan(10)]
    assert sorted(row for page in pages for row in page) == [("A-1", WrappedKey("k1", b"again")), ("A-3", key("k3"))]
    await store.erase("A-1", NOW)
    assert (await store.load(["A-1"]))["A-1"].keys == ()


async def test_closing_twice_is_fine(store: KeyStore) -> None:
    await store.close()
    await store.close()
