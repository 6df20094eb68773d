"""Destroyed keys are in no byte of any file of the key store."""

from __future__ import annotations

import base64
import random
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kiseki.security.key_store import KeyStoreUnavailable, Rewrapped, WrappedKey
from kiseki.security.sqlite_key_store import SqliteKeyStore

NOW = datetime(2026, 3, 1, tzinfo=UTC)
FILES = ("keys.sqlite", "keys.sqlite-wal", "keys.sqlite-shm")
WINDOW = 12


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteKeyStore]:
    opened = await SqliteKeyStore.open(tmp_path / "keys.sqlite", busy_timeout=0.05)
    yield opened
    await opened.close()


def content(directory: Path) -> bytes:
    """All bytes of all files. Read by another process: closing such a file here would drop SQLite's locks."""
    there = [directory / name for name in FILES if (directory / name).exists()]
    assert there
    return subprocess.run(["cat", *there], check=True, stdout=subprocess.PIPE).stdout


def remains(directory: Path, destroyed: Iterable[WrappedKey]) -> list[str]:
    """The keys of which any twelve bytes in a row are still to be found, as bytes or as the text they are kept as."""
    everything = content(directory)
    windows = {everything[start : start + WINDOW] for start in range(len(everything) - WINDOW)}
    found = []
    for key in destroyed:
        for form in (key.wrapped, base64.b64encode(key.wrapped)):
            if any(form[start : start + WINDOW] in windows for start in range(len(form) - WINDOW + 1)):
                found.append(key.key_id)
    return found


def made(chooser: random.Random, count: int, sizes: tuple[int, ...] = (90,)) -> dict[str, WrappedKey]:
    return {
        f"UserAccount-{chooser.getrandbits(100):x}": WrappedKey(
            f"{chooser.getrandbits(48):x}", chooser.randbytes(chooser.choice(sizes))
        )
        for _ in range(count)
    }


async def test_the_search_finds_keys_that_are_there(tmp_path: Path, store: SqliteKeyStore) -> None:
    keys = made(random.Random(1), 50)
    await store.insert(keys)
    assert len(remains(tmp_path, keys.values())) == 50


async def test_one_erasure_leaves_nothing_of_the_key_and_all_of_the_others(
    tmp_path: Path, store: SqliteKeyStore
) -> None:
    keys = made(random.Random(2), 50)
    await store.insert(keys)
    erased, *others = keys
    await store.erase(erased, NOW)
    assert remains(tmp_path, [keys[erased]]) == []
    assert {subject: known.keys for subject, known in (await store.load(others)).items()} == {
        subject: (keys[subject],) for subject in others
    }


@pytest.mark.parametrize("sizes", [(90,), (90, 90, 300, 1_200, 9_000)], ids=["as they are", "of all sizes"])
@pytest.mark.parametrize("seed", range(3))
async def test_nothing_is_left_after_many_insertions_and_erasures(
    tmp_path: Path, store: SqliteKeyStore, sizes: tuple[int, ...], seed: int
) -> None:
    """Tables that grow and pages that fill: what moves must not leave copies."""
    chooser = random.Random(seed)
    living: dict[str, WrappedKey] = {}
    destroyed: list[WrappedKey] = []
    for _ in range(60):
        new = made(chooser, chooser.randint(1, 40), sizes)
        await store.insert(new)
        living.update(new)
        for subject in chooser.sample(sorted(living), min(len(living), chooser.randint(0, 8))):
            await store.erase(subject, NOW)
            destroyed.append(living.pop(subject))
    assert len(destroyed) > 150
    assert remains(tmp_path, destroyed) == []
    found = await store.load(living)
    assert {subject: known.keys for subject, known in found.items()} == {s: (key,) for s, key in living.items()}


async def test_nothing_is_left_when_almost_everybody_is_erased(tmp_path: Path, store: SqliteKeyStore) -> None:
    """Pages that empty: SQLite would bring their rows together, were they to shrink or go."""
    chooser = random.Random(9)
    keys = made(chooser, 300)
    await store.insert(keys)
    erased = chooser.sample(sorted(keys), 290)
    for subject in erased:
        await store.erase(subject, NOW)
    assert remains(tmp_path, [keys[subject] for subject in erased]) == []
    assert len(await store.load(keys)) == 300


async def test_keys_never_move_in_the_file(tmp_path: Path, store: SqliteKeyStore) -> None:
    """A row that moves can leave a part behind, too rarely for a search to be sure to meet it: so none may move."""
    chooser = random.Random(8)
    first = made(chooser, 200)  # more than the table's first page, which is copied once and cleared
    await store.insert(first)
    subjects = chooser.sample(sorted(first), 200)
    await store.erase(subjects.pop(), NOW)
    places = {subject: content(tmp_path).find(base64.b64encode(first[subject].wrapped)) for subject in subjects}
    assert min(places.values()) > 0
    for _ in range(30):
        await store.insert(made(chooser, 20))
        await store.erase(subjects.pop(), NOW)
        now = content(tmp_path)
        assert [s for s in subjects if now.find(base64.b64encode(first[s].wrapped)) != places[s]] == []


async def test_an_erased_subject_without_keys_gets_none_into_the_file(tmp_path: Path, store: SqliteKeyStore) -> None:
    keys = made(random.Random(3), 1)
    await store.erase(next(iter(keys)), NOW)
    await store.insert(keys)
    assert remains(tmp_path, keys.values()) == []


async def test_rewrapping_leaves_nothing_of_the_old_form_and_erasure_nothing_of_either(
    tmp_path: Path, store: SqliteKeyStore
) -> None:
    chooser = random.Random(4)
    old = made(chooser, 400)
    await store.insert(old)
    new = {subject: WrappedKey(key.key_id, chooser.randbytes(150)) for subject, key in old.items()}
    changes = [Rewrapped(subject, key, new[subject].wrapped) for subject, key in old.items()]
    assert await store.replace(changes[:250]) == 250
    assert remains(tmp_path, list(old.values())[:250]) == []
    for subject in list(old)[::2]:
        await store.erase(subject, NOW)
    gone = [form[subject] for subject in list(old)[::2] for form in (old, new)]
    assert remains(tmp_path, gone) == []


async def test_an_erasure_that_can_not_clean_the_log_says_so_and_does_it_the_next_time(
    tmp_path: Path, store: SqliteKeyStore
) -> None:
    keys = made(random.Random(5), 5)
    await store.insert(keys)
    subject = next(iter(keys))
    with closing(sqlite3.connect(tmp_path / "keys.sqlite", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM subject_keys").fetchone()
        with pytest.raises(KeyStoreUnavailable, match="do it again"):
            await store.erase(subject, NOW)
        assert (await store.load([subject]))[subject].erased_at == NOW, "no key is given out any more"
        assert remains(tmp_path, [keys[subject]]) != []
    await store.erase(subject, NOW)
    assert remains(tmp_path, [keys[subject]]) == []


async def test_a_start_finishes_an_erasure_that_was_cut_short(tmp_path: Path, store: SqliteKeyStore) -> None:
    keys = made(random.Random(6), 5)
    await store.insert(keys)
    subject = next(iter(keys))
    with closing(sqlite3.connect(tmp_path / "keys.sqlite", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM subject_keys").fetchone()
        with pytest.raises(KeyStoreUnavailable):
            await store.erase(subject, NOW)
        with_reader = await SqliteKeyStore.open(tmp_path / "keys.sqlite", busy_timeout=0.05)
        await with_reader.close()
    again = await SqliteKeyStore.open(tmp_path / "keys.sqlite")
    assert remains(tmp_path, [keys[subject]]) == []
    await again.close()
