"""A KeyStore in a SQLite file of its own: one thread writes and one reads, and concurrent calls share a write.

Any number of processes may use the file. The file, its log and its index have mode 0600.
"""

from __future__ import annotations

import asyncio
import base64
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, Self, TypeVar

import msgspec

from kiseki.security.grouped import GroupedCalls
from kiseki.security.key_store import Erasures, KeyStoreUnavailable, Rewrapped, SubjectKeys, WrappedKey
from kiseki.security.sqlite_key_file import KeyFile

__all__ = ["SqliteKeyStore"]

Result = TypeVar("Result")

# Each of these is one step of SQLite, however large the group: Python hands the interpreter over at every step.
_INSERT: Final = """
INSERT INTO subject_keys (subject, number, wrapping, key_id, wrapped)
SELECT json_extract(value, '$[0]'), 1, 1, json_extract(value, '$[1]'), json_extract(value, '$[2]') FROM json_each(?)
WHERE NOT EXISTS (SELECT 1 FROM erasures WHERE subject = json_extract(value, '$[0]'))
ON CONFLICT DO NOTHING
"""
_LOAD: Final = """
SELECT json_group_array(json_array(
    asked.value,
    (SELECT erased_at FROM erasures WHERE subject = asked.value),
    json((SELECT json_group_array(json_array(key_id, wrapped)) FROM (
        SELECT key_id, wrapped, max(wrapping) FROM subject_keys WHERE subject = asked.value
        GROUP BY number ORDER BY number)))
)) FROM json_each(?) AS asked
"""
_ERASURES: Final = "SELECT json_group_array(subject), max(number) FROM erasures WHERE number > ?"
_MARK: Final = "SELECT '[]', max(number) FROM erasures"
_TOMBSTONE: Final = "INSERT INTO erasures (subject, erased_at) VALUES (?, ?) ON CONFLICT DO NOTHING"
# The same length: SQLite overwrites the row where it is.
_DESTROY: Final = "UPDATE subject_keys SET wrapped = printf('%.*c', length(wrapped), '0') WHERE subject = ?"
_SCAN: Final = """
SELECT json_group_array(json_array(subject, key_id, wrapped)), max(id) FROM (
    SELECT id, subject, key_id, wrapped FROM subject_keys AS row WHERE id > ?
    AND NOT EXISTS (SELECT 1 FROM erasures WHERE subject = row.subject)
    AND NOT EXISTS (SELECT 1 FROM subject_keys AS newer
        WHERE newer.subject = row.subject AND newer.number = row.number AND newer.wrapping > row.wrapping)
    ORDER BY id LIMIT ?)
"""
_REWRAP: Final = """
INSERT INTO subject_keys (subject, number, wrapping, key_id, wrapped)
SELECT row.subject, row.number, row.wrapping + 1, row.key_id, json_extract(value, '$[3]')
FROM json_each(?) JOIN subject_keys AS row ON row.subject = json_extract(value, '$[0]')
WHERE row.key_id = json_extract(value, '$[1]') AND row.wrapped = json_extract(value, '$[2]')
ON CONFLICT DO NOTHING
"""
_DESTROY_OLD: Final = """
UPDATE subject_keys SET wrapped = printf('%.*c', length(wrapped), '0') WHERE id IN (
    SELECT row.id FROM json_each(?) JOIN subject_keys AS row ON row.subject = json_extract(value, '$[0]')
    WHERE row.key_id = json_extract(value, '$[1]') AND row.wrapped = json_extract(value, '$[2]')
    AND EXISTS (SELECT 1 FROM subject_keys AS newer
        WHERE newer.subject = row.subject AND newer.number = row.number AND newer.wrapping > row.wrapping))
"""
_decode_known: Final = msgspec.json.Decoder(list[tuple[str, str | None, list[tuple[str, str]]]]).decode
_decode_subjects: Final = msgspec.json.Decoder(tuple[str, ...]).decode
_decode_keys: Final = msgspec.json.Decoder(list[tuple[str, str, str]]).decode


class _Worker:
    """One thread with one connection. What fails takes the connection with it; the next call opens another."""

    def __init__(self, file: KeyFile, name: str) -> None:
        self.executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._file = file
        self._connection: sqlite3.Connection | None = None

    async def call(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Runs on the thread and gives the result. Raises as `run`."""
        return await asyncio.get_running_loop().run_in_executor(self.executor, self.run, work)

    def run(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Only on the thread. Raises KeyFileRefused, KeyStoreUnavailable, KeyStoreCorrupt."""
        with self._file.translated():
            if self._connection is None:
                self._connection = self._file.connect()
            try:
                self._file.check()
                return work(self._connection)
            except BaseException:
                self.disconnect()  # also rolls back
                raise

    def disconnect(self) -> None:
        """Only on the thread."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class SqliteKeyStore:
    """A KeyStore in one SQLite file. Made by `open`; belongs to one event loop."""

    def __init__(self, file: KeyFile) -> None:
        self._file = file
        self._writer = _Worker(file, "key-store-writer")
        self._reader = _Worker(file, "key-store-reader")
        self._inserts = GroupedCalls(self._insert, self._writer.executor)
        self._loads = GroupedCalls(self._load, self._reader.executor)
        self._closed = False

    @classmethod
    async def open(cls, path: Path, *, busy_timeout: float = 5.0) -> Self:
        """Opens the file, which is made when it is not there. `busy_timeout`: how long another process's lock is waited
        for, in seconds.

        Raises KeyFileRefused for a file that others may read or that is no key store, KeyStoreUnavailable,
        KeyStoreCorrupt.
        """
        file = KeyFile(path, busy_timeout=busy_timeout)
        store = cls(file)
        try:
            await asyncio.get_running_loop().run_in_executor(store._writer.executor, file.create)
            await store._reader.call(lambda _: None)
            await store._writer.call(store._clean)
        except BaseException:
            await store.close()
            raise
        return store

    async def load(self, subjects: Collection[str]) -> dict[str, SubjectKeys]:
        """As KeyStore; concurrent calls share one read."""
        self._must_be_open()
        known = await self._loads.ask(list(subjects))
        return {subject: known[subject] for subject in subjects if subject in known}

    async def insert(self, keys: Mapping[str, WrappedKey]) -> dict[str, SubjectKeys]:
        """As KeyStore; concurrent calls share one durable write."""
        self._must_be_open()
        known = await self._inserts.ask(list(keys.items()))
        return {subject: known[subject] for subject in keys}

    async def erase(self, subject: str, at: datetime) -> None:
        """As KeyStore. When it raises, the keys may be destroyed already and only the log not cut yet."""
        self._must_be_open()

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_TOMBSTONE, (subject, at.astimezone(UTC).isoformat(timespec="microseconds")))
            connection.execute(_DESTROY, (subject,))
            connection.execute("COMMIT")
            self._file.scrub(connection)

        await self._writer.call(work)

    async def erasures(self, after: int | None) -> Erasures:
        """As KeyStore. Costs one short read on the reading thread, some 0.1 ms."""
        self._must_be_open()

        def work(connection: sqlite3.Connection) -> Erasures:
            found = connection.execute(_MARK) if after is None else connection.execute(_ERASURES, (after,))
            subjects, mark = found.fetchone()
            return Erasures(_decode_subjects(subjects), mark or after or 0)

        return await self._reader.call(work)

    async def scan(self, page: int) -> AsyncIterator[Sequence[tuple[str, WrappedKey]]]:
        """As KeyStore."""
        after: int | None = 0
        while after is not None:
            self._must_be_open()
            keys, after = await self._reader.call(partial(_page, after, page))
            if keys:
                yield keys

    async def replace(self, changes: Sequence[Rewrapped]) -> int:
        """As KeyStore: the new form is a new row, the old one is overwritten."""
        self._must_be_open()
        rows = _json(
            [(each.subject, each.old.key_id, _text(each.old.wrapped), _text(each.wrapped)) for each in changes]
        )

        def work(connection: sqlite3.Connection) -> int:
            connection.execute("BEGIN IMMEDIATE")
            replaced = connection.execute(_REWRAP, (rows,)).rowcount
            connection.execute(_DESTROY_OLD, (rows,))
            connection.execute("COMMIT")
            self._file.scrub(connection)
            return replaced

        return await self._writer.call(work)

    async def tidy(self) -> None:
        """As KeyStore: nothing to do, an erasure is not done before its key is overwritten."""

    async def close(self) -> None:
        """As KeyStore."""
        if self._closed:
            return
        self._closed = True
        loop = asyncio.get_running_loop()
        for worker in (self._writer, self._reader):
            await loop.run_in_executor(worker.executor, worker.disconnect)
            worker.executor.shutdown(wait=False)

    def _must_be_open(self) -> None:
        if self._closed:
            raise KeyStoreUnavailable(f"the key store {self._file.path.name} is closed")

    def _insert(self, items: list[tuple[str, WrappedKey]]) -> dict[str, SubjectKeys]:
        rows = _json([(subject, key.key_id, _text(key.wrapped)) for subject, key in items])

        def work(connection: sqlite3.Connection) -> dict[str, SubjectKeys]:
            connection.execute(_INSERT, (rows,))  # a transaction of its own: durable when it returns
            return _known(connection, [subject for subject, _ in items])

        return self._writer.run(work)

    def _load(self, subjects: list[str]) -> dict[str, SubjectKeys]:
        return self._reader.run(lambda connection: _known(connection, subjects))

    def _clean(self, connection: sqlite3.Connection) -> None:
        """Finishes an erasure that a crash cut short. Others who use the log now are not waited for: they erase too."""
        with suppress(KeyStoreUnavailable):
            self._file.scrub(connection)


def _known(connection: sqlite3.Connection, subjects: list[str]) -> dict[str, SubjectKeys]:
    (rows,) = connection.execute(_LOAD, (_json(subjects),)).fetchone()
    known = {}
    for subject, erased_at, keys in _decode_known(rows):
        if erased_at is not None:
            known[subject] = SubjectKeys((), datetime.fromisoformat(erased_at))
        elif keys:
            known[subject] = SubjectKeys(tuple(WrappedKey(key_id, _bytes(wrapped)) for key_id, wrapped in keys))
    return known


def _page(after: int, size: int, connection: sqlite3.Connection) -> tuple[list[tuple[str, WrappedKey]], int | None]:
    """The next keys, and after which row to go on; None at the end."""
    rows, last = connection.execute(_SCAN, (after, size)).fetchone()
    return [(subject, WrappedKey(key_id, _bytes(wrapped))) for subject, key_id, wrapped in _decode_keys(rows)], last


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _text(wrapped: bytes) -> str:
    return base64.b64encode(wrapped).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)
