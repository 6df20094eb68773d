"""The key store in a SQLite file: what it does to the disk, and what the disk can do to it."""

from __future__ import annotations

import asyncio
import resource
import signal
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kiseki.security.key_store import KeyStoreCorrupt, KeyStoreUnavailable, SubjectKeys, WrappedKey
from kiseki.security.sqlite_key_file import KeyFile, KeyFileRefused
from kiseki.security.sqlite_key_store import SqliteKeyStore

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.sqlite"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteKeyStore]:
    opened = await SqliteKeyStore.open(path, busy_timeout=0.05)
    yield opened
    await opened.close()


def key(name: str, length: int = 80) -> WrappedKey:
    return WrappedKey(name, name.encode() + bytes(length))


def put(path: Path, content: bytes) -> None:
    """A file of another origin, with the mode that is asked for."""
    path.write_bytes(content)
    path.chmod(0o600)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def change_mode(path: Path, wanted: int) -> None:
    path.chmod(wanted)


def rename(path: Path, name: str) -> Path:
    return path.rename(path.with_name(name))


def there(path: Path) -> dict[str, bytes]:
    """The files of a directory."""
    return {each.name: each.read_bytes() for each in path.iterdir()}


def size(path: Path) -> int:
    return path.stat().st_size


def durable_writes(path: Path) -> int:
    """How many commits the log holds: frames that carry the size of the database (sqlite.org/fileformat2.html 4.1)."""
    log = Path(f"{path}-wal").read_bytes()
    page, salt = int.from_bytes(log[8:12]), log[16:24]
    frames = [log[start : start + 24] for start in range(32, len(log), 24 + page)]
    return sum(1 for frame in frames if frame[8:16] == salt and frame[4:8] != bytes(4))


# Durability


async def test_connections_are_as_durable_and_as_secretive_as_promised(path: Path, store: SqliteKeyStore) -> None:
    with closing(KeyFile(path, busy_timeout=1).connect()) as connection:
        found = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "secure_delete", "temp_store", "auto_vacuum")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1, "temp_store": 2, "auto_vacuum": 0}


async def test_concurrent_insertions_share_one_durable_write(path: Path, store: SqliteKeyStore) -> None:
    before = durable_writes(path)
    await asyncio.gather(*(store.insert({f"A-{number}": key("k")}) for number in range(64)))
    assert durable_writes(path) - before == 1
    await store.insert({"B-1": key("k")})
    await store.insert({"B-2": key("k")})
    assert durable_writes(path) - before == 3, "one by one, each has its own"


async def test_keys_are_there_after_a_restart(path: Path, store: SqliteKeyStore) -> None:
    await store.insert({"A-1": key("k1")})
    await store.erase("A-2", NOW)
    await store.close()
    again = await SqliteKeyStore.open(path)
    assert await again.load(["A-1", "A-2"]) == {"A-1": SubjectKeys((key("k1"),)), "A-2": SubjectKeys((), NOW)}
    await again.close()


async def test_several_keys_of_one_subject_are_read_oldest_first(path: Path, store: SqliteKeyStore) -> None:
    """The file has room for the rotation of data keys."""
    await store.insert({"A-1": key("z")})
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO subject_keys VALUES (NULL, 'A-1', 2, 1, 'a', 'AAAA')")
    assert [each.key_id for each in (await store.load(["A-1"]))["A-1"].keys] == ["z", "a"]


# Who may use the file, and whose it is


async def test_only_the_owner_may_read_any_of_the_files(path: Path, store: SqliteKeyStore) -> None:
    await store.insert({"A-1": key("k1")})
    modes = {name: mode(path.with_name(name)) for name in there(path.parent)}
    assert modes == {f"keys.sqlite{suffix}": 0o600 for suffix in ("", "-wal", "-shm", ".lock")}


@pytest.mark.parametrize("loose", [0o640, 0o604, 0o660])
async def test_a_file_that_others_may_use_is_refused(path: Path, store: SqliteKeyStore, loose: int) -> None:
    await store.close()
    change_mode(path, loose)
    with pytest.raises(KeyFileRefused, match="chmod 600"):
        await SqliteKeyStore.open(path)


@pytest.mark.parametrize(
    "statement", ["CREATE TABLE orders (id)", "PRAGMA user_version = 7", "PRAGMA application_id = 9"]
)
async def test_somebody_elses_database_is_refused_and_left_alone(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()
    change_mode(path, 0o600)
    before = there(path.parent)
    with pytest.raises(KeyFileRefused, match="no key store"):
        await SqliteKeyStore.open(path)
    path.with_name(f"{path.name}.lock").unlink()
    assert there(path.parent) == before


async def test_a_later_version_is_refused(path: Path, store: SqliteKeyStore) -> None:
    await store.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 2")
    with pytest.raises(KeyFileRefused, match="version 1"):
        await SqliteKeyStore.open(path)


async def test_a_damaged_file_is_corrupt_not_unavailable(path: Path) -> None:
    put(path, b"not a database" * 1_000)
    with pytest.raises(KeyStoreCorrupt, match="damaged"):
        await SqliteKeyStore.open(path)


async def test_a_file_in_no_directory_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(KeyStoreUnavailable, match="No such file or directory"):
        await SqliteKeyStore.open(tmp_path / "none" / "keys.sqlite")


async def test_a_removed_or_replaced_file_is_not_written_to(path: Path, store: SqliteKeyStore) -> None:
    """SQLite would go on writing to the file that has no name any more."""
    await store.insert({"A-1": key("k1")})
    aside = rename(path, "aside")
    with pytest.raises(KeyStoreUnavailable, match="not there"):
        await store.insert({"A-2": key("k2")})
    assert path.name not in there(path.parent), "an empty store in its place would look like one whose keys are lost"
    put(path, there(path.parent)[aside.name])
    with pytest.raises(KeyStoreUnavailable, match="replaced"):
        await store.load(["A-1"])
    rename(aside, path.name)
    assert set(await store.insert({"A-1": key("k1"), "A-2": key("k2")})) == {"A-1", "A-2"}


# A store that can't be used now, and can later


class TroubledFile(KeyFile):
    """Connections that a pragma limits, to get SQLite's own errors."""

    trouble = "PRAGMA cache_size"

    def connect(self) -> sqlite3.Connection:
        connection = super().connect()
        connection.execute(self.trouble).fetchone()
        return connection


@pytest.fixture
async def troubled(path: Path, store: SqliteKeyStore) -> AsyncIterator[tuple[TroubledFile, SqliteKeyStore]]:
    file = TroubledFile(path, busy_timeout=0.05)
    opened = SqliteKeyStore(file)
    yield file, opened
    await opened.close()


@pytest.mark.parametrize(
    ("trouble", "cause"),
    [("PRAGMA max_page_count = 1", "the disk is full"), ("PRAGMA query_only = ON", "the file is read-only")],
)
async def test_a_full_and_a_read_only_disk_are_said_and_recovered_from(
    troubled: tuple[TroubledFile, SqliteKeyStore], trouble: str, cause: str
) -> None:
    file, store = troubled
    file.trouble = trouble
    for _ in range(2):
        with pytest.raises(KeyStoreUnavailable, match=cause):
            await store.insert({f"A-{number}": key("k", 900) for number in range(20)})
    assert await store.load(["A-1"]) == {}, "nothing of it was written, and reading goes on"
    file.trouble = TroubledFile.trouble
    assert len(await store.insert({f"A-{number}": key("k", 900) for number in range(20)})) == 20
    assert set(await store.load(["A-1"])) == {"A-1"}


@contextmanager
def file_size_limit(most: int) -> Iterator[None]:
    """No file of this process can grow beyond a size: writing fails in the system, as on a broken disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


async def test_a_disk_that_does_not_write_is_said_and_recovered_from(path: Path, store: SqliteKeyStore) -> None:
    await store.insert({"A-1": key("k1")})
    keys = {f"A-{number}": key("k", 900) for number in range(20)}
    with file_size_limit(size(Path(f"{path}-wal"))):
        for _ in range(2):
            with pytest.raises(KeyStoreUnavailable, match="the disk"):
                await store.insert(keys)
        assert set(await store.load(["A-1", "A-2"])) == {"A-1"}
    assert set(await store.insert(keys)) == set(keys)


async def test_a_lock_that_lasts_is_said_and_recovered_from(path: Path, store: SqliteKeyStore) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for call in (store.insert({"A-1": key("k1")}), store.erase("A-1", NOW)):
            with pytest.raises(KeyStoreUnavailable, match="another process holds its lock") as raised:
                await call
        assert await store.load(["A-1"]) == {}, "reading does not wait"
        other.execute("ROLLBACK")
    assert raised.value.code == "UNAVAILABLE"
    assert set(await store.insert({"A-1": key("k1")})) == {"A-1"}


async def test_a_closed_store_is_unavailable(store: SqliteKeyStore) -> None:
    await store.close()
    for call in (store.load(["A-1"]), store.insert({}), store.erase("A-1", NOW), store.erasures(0), store.replace([])):
        with pytest.raises(KeyStoreUnavailable, match="closed"):
            await call
