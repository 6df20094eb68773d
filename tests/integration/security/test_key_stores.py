"""What every key store promises, on each of them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from kiseki.kernel.personal import ERASED, Erased
from kiseki.kernel.ports import SubjectErased
from kiseki.security.key_store import (
    KeyStore,
    KeyStoreUnavailable,
    MemoryKeyStore,
    Rewrapped,
    SubjectKeys,
    WrappedKey,
)
from kiseki.security.master_key import LocalMasterKey
from kiseki.security.protector import KeyProtector
from kiseki.security.sqlite_key_store import SqliteKeyStore
from tests.integration.security.conftest import OpenStore
from tests.support import ManualClock

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
ANY_BYTES = bytes(range(256))


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
    await store.erase("A-2", NOW)
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


async def erase(store: KeyStore, subject: str) -> None:
    """On a file, another's erasure may stand in the way; as the error says, it is to be done again."""
    while True:
        try:
            return await store.erase(subject, NOW)
        except KeyStoreUnavailable:
            if not isinstance(store, SqliteKeyStore):
                raise


async def test_processes_share_what_they_keep(open_store: OpenStore) -> None:
    one, other = await open_store(), await open_store()
    mark = (await other.erasures(None)).mark
    await one.insert({"A-1": key("k1"), "A-2": key("k2")})
    assert (await other.insert({"A-1": key("k3")}))["A-1"].keys == (key("k1"),)
    await one.erase("A-2", NOW)
    assert (await other.erasures(mark)).subjects == ("A-2",)
    assert await other.load(["A-1", "A-2"]) == {"A-1": SubjectKeys((key("k1"),)), "A-2": SubjectKeys((), NOW)}
    assert (await one.erasures(None)).mark == (await other.erasures(None)).mark


async def test_many_at_once_each_get_their_own(store: KeyStore) -> None:
    subjects = [f"A-{number}" for number in range(250)]
    await asyncio.gather(*(store.insert({subject: key(subject)}) for subject in subjects))
    found = await asyncio.gather(*(store.load([subject]) for subject in subjects))
    assert found == [{subject: SubjectKeys((key(subject),))} for subject in subjects]
    assert len(await store.load(subjects)) == 250


async def test_erasures_of_many_processes_are_all_told_and_none_is_lost(open_store: OpenStore) -> None:
    """A listener asks again and again while others erase: with each answer it knows of all that was erased before, and
    the subjects it was told of have no key any more."""
    erasers = [await open_store() for _ in range(3)]
    listener = await open_store()
    subjects = [f"A-{number}" for number in range(30)]
    await listener.insert({subject: key(subject) for subject in subjects})
    done: set[str] = set()

    async def erase_all(eraser: KeyStore, share: list[str]) -> None:
        for subject in share:
            await erase(eraser, subject)
            done.add(subject)

    mark: int = (await listener.erasures(None)).mark
    told: set[str] = set()
    working = asyncio.gather(*(erase_all(eraser, subjects[at::3]) for at, eraser in enumerate(erasers)))
    while not working.done() or told != done:
        before = set(done)
        heard, mark = await listener.erasures(mark)
        told.update(heard)
        assert before <= told
        assert all(known.erased_at == NOW for known in (await listener.load(heard)).values())
        await asyncio.sleep(0)
    await working
    assert told == set(subjects)


async def test_of_erasures_and_insertions_that_meet_the_erasure_wins(open_store: OpenStore) -> None:
    """Whatever the order: when all have returned there is a tombstone and no key."""
    one, other = await open_store(), await open_store()
    subjects = [f"A-{number}" for number in range(20)]
    await asyncio.gather(
        *(one.insert({subject: key("k1")}) for subject in subjects),
        *(erase(other, subject) for subject in subjects),
        *(erase(one, subject) for subject in subjects),
    )
    assert await other.load(subjects) == dict.fromkeys(subjects, SubjectKeys((), NOW))
    assert [page async for page in other.scan(10)] == []


async def test_two_who_rewrap_the_same_do_not_count_a_key_twice(open_store: OpenStore) -> None:
    one, other = await open_store(), await open_store()
    subjects = [f"A-{number}" for number in range(20)]
    await one.insert({subject: key(subject) for subject in subjects})
    mine = [Rewrapped(subject, key(subject), b"mine") for subject in subjects]
    theirs = [Rewrapped(subject, key(subject), b"theirs") for subject in reversed(subjects)]
    counts = tuple(await asyncio.gather(one.replace(mine), other.replace(theirs)))
    assert sum(counts) == 20
    kept = await one.load(subjects)
    assert len(kept) == 20
    wrapped = [known.keys[0].wrapped for known in kept.values()]
    assert (wrapped.count(b"mine"), wrapped.count(b"theirs")) == counts


async def test_protectors_of_two_processes_agree_on_keys_and_erasures(open_store: OpenStore) -> None:
    clock, master = ManualClock(), LocalMasterKey(bytes(32))
    one, other = [await KeyProtector.open(store=await open_store(), wrapper=master, clock=clock) for _ in range(2)]
    sealed = (await one.ensure(["A-1"]))["A-1"].seal(b"name", b"context")
    cipher = (await other.ciphers(["A-1"]))["A-1"]
    assert not isinstance(cipher, Erased)
    assert cipher.open(sealed, b"context") == b"name"
    assert one.digest("scope", "value") == other.digest("scope", "value")
    await one.erase("A-1")
    clock.advance(1.0)  # after which the other asks the store again
    assert await other.ciphers(["A-1"]) == {"A-1": ERASED}
    with pytest.raises(SubjectErased):
        await other.ensure(["A-1"])
