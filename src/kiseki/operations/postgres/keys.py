"""`PostgresKeyBackups`: the KeyBackups of a key store in PostgreSQL, with the revocations that are kept beside it.

A dump holds wrapped keys, so it is kept for a few days only. What was erased stays erased: tombstones of the live store
that a backup lacks are carried over when it is restored.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import asyncpg

from kiseki.clients.postgres import PostgresAddress, PostgresConnection, quoted
from kiseki.kernel.ports import Clock
from kiseki.operations.backup.manifest import Made, Manifest
from kiseki.operations.backup.port import Progress, Switched
from kiseki.operations.errors import BackupDamaged, BackupRefused
from kiseki.operations.postgres.dump import Dumps
from kiseki.operations.postgres.grants import Grants, load_grants, read_grants, save_grants
from kiseki.operations.postgres.programs import PostgresPrograms
from kiseki.operations.postgres.scratch import Scratch
from kiseki.operations.postgres.session import at_once, explained_server, server_of, session, view
from kiseki.operations.postgres.switch import StagedSchemas, Switching, staged_name
from kiseki.security.identity.postgres_revocations import COMPONENT as REVOCATIONS
from kiseki.security.identity.postgres_revocations import PostgresRevocations
from kiseki.security.postgres_key_store import COMPONENT, MIGRATIONS, PostgresKeyStore

__all__ = ["PostgresKeyBackups", "PostgresStagedKeys"]

_SESSIONS: Final = ("kiseki-keys%", "kiseki-revocations%")
_MODULUS: Final = 1 << 256
_PAGE: Final = 1_000
_SUBJECTS: Final = "SELECT subject, key_ids, wrapped, erased_at IS NOT NULL AS erased FROM subjects"
_HAS_REVOCATIONS: Final = "SELECT to_regclass('token_revocations') IS NOT NULL"
_REVOCATIONS: Final = "SELECT count(*) FROM token_revocations"
_BOTH: Final = "SELECT to_regclass($1) IS NOT NULL AND to_regclass($2) IS NOT NULL"


class PostgresKeyBackups:
    """Backups by pg_dump of the key store's schema."""

    store = "postgresql"

    def __init__(
        self, address: PostgresAddress, programs: PostgresPrograms, *, clock: Clock, scratch: Scratch | None = None
    ) -> None:
        """`scratch`: where throw-away copies are made."""
        self._address = address
        self._clock = clock
        self._dumps = Dumps(address, programs, scratch or Scratch())

    async def make(self, folder: Path, progress: Progress) -> Made:
        """As PartBackups. The digest is the sum, modulo 2^256, of the SHA-256 of each subject, key id and wrapped key,
        and of each erased subject. Raises BackupRefused for a schema that holds more than keys and revocations."""
        server = await server_of(self._address)
        with explained_server(self._address, "the backup of the key store"):
            async with view(self._address) as moment:
                try:
                    await self._dumps.refuse_foreign(moment, (COMPONENT, REVOCATIONS))
                except asyncpg.UndefinedTableError as problem:
                    raise BackupRefused(
                        f"there is no key store in the schema {self._address.schema} on {self._address.label}, or its "
                        "role may not use it; check the setting `keys`"
                    ) from problem
                grants = await read_grants(moment.connection, self._address.schema)
                progress("dumping")
                versions, (counts, digest) = await at_once(
                    self._dumps.dump(folder, moment, major=server.major, schemas=[self._address.schema]),
                    _held(moment.connection),
                )
        if grants is not None:
            await asyncio.to_thread(save_grants, folder, [(self._address.schema, grants)])
        return Made(
            store=self.store,
            method="dump",
            as_of=moment.as_of,
            versions={"postgresql": server.version, "keys": str(MIGRATIONS[-1].number), **versions},
            counts=counts,
            digest=digest,
            references={"schema": self._address.schema},
        )

    async def forget(self, manifest: Manifest) -> None:
        """As PartBackups: nothing is kept elsewhere."""

    @asynccontextmanager
    async def opened(self, folder: Path, manifest: Manifest) -> AsyncIterator[PostgresKeyStore]:
        """As KeyBackups; what is in it was compared with the manifest. Raises BackupDamaged."""
        async with self._dumps.restored(folder, manifest) as scratch:
            address = dataclasses.replace(scratch, schema=_schema_of(manifest))
            await _refuse_other(address, manifest)
            await PostgresKeyStore.migrate(address)
            async with _opened(address) as store:
                yield store

    async def stage(self, folder: Path, manifest: Manifest, progress: Progress) -> PostgresStagedKeys:
        """As KeyBackups: in a schema of its own, in the same database."""
        kept = (await asyncio.to_thread(load_grants, folder)).get(_schema_of(manifest))
        name = staged_name(self._address.schema, self._clock.now())
        beside = dataclasses.replace(self._address, schema=name)
        staged = StagedSchemas(self._address, clock=self._clock, sessions=_SESSIONS)
        try:
            await staged.keep(name)
            progress("restoring into a throw-away database")
            async with self._dumps.restored(folder, manifest) as scratch:
                progress("restoring beside the live key store")
                await self._dumps.stage(scratch, self._address, {_schema_of(manifest): name})
            await _refuse_other(beside, manifest)
            await PostgresKeyStore.migrate(beside)
            await PostgresRevocations.migrate(beside)
        except BaseException:
            await staged.discard()
            raise
        return PostgresStagedKeys(self._address, beside, staged, kept)


class PostgresStagedKeys:
    """A key store restored beside the live one."""

    def __init__(
        self, address: PostgresAddress, beside: PostgresAddress, staged: StagedSchemas, kept: Grants | None
    ) -> None:
        self._address = address
        self._beside = beside
        self._staged = staged
        self._kept = kept

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[PostgresKeyStore]:
        """As StagedKeys."""
        async with _opened(self._beside) as store:
            yield store

    async def switch(self) -> Switched:
        """As Staged. Who was erased since the backup stays erased, as far as the live store can say it."""
        replaced, left = await self._staged.switch(_carry_over, self._kept)
        async with _opened(self._address) as store:
            await store.tidy()
        if not replaced:
            return Switched("", tuple(left))
        return Switched(
            f"schema {replaced} on {self._address.label}",
            (*left, f"within seven days, because it holds keys of people: DROP SCHEMA {replaced} CASCADE"),
        )

    async def discard(self) -> None:
        """As Staged."""
        await self._staged.discard()


async def _carry_over(switching: Switching) -> Sequence[str]:
    if switching.replaced is None:
        return ()
    connection, old, new = switching.connection, quoted(switching.replaced), quoted(switching.live)
    if await connection.fetchval(_BOTH, f"{old}.token_revocations", f"{new}.token_revocations"):
        await connection.execute(
            f"""
                INSERT INTO {new}.token_revocations AS there (issuer, subject, until)
                SELECT issuer, subject, until FROM {old}.token_revocations
                ON CONFLICT (issuer, subject) DO UPDATE SET until = greatest(there.until, excluded.until)
            """  # noqa: S608  # quoted names
        )
    if not await connection.fetchval(_BOTH, f"{old}.subjects", f"{old}.erasures"):
        return ("the old key store was damaged: see that the ledger of erasures was replayed before you serve",)
    # After all numbers that either store has given, so that whoever asks from an old mark hears of them.
    await connection.execute(
        f"""
            INSERT INTO {new}.subjects (subject, key_ids, wrapped, erased_at, erasure)
            SELECT gone.subject, '{{}}', '{{}}', gone.erased_at,
                greatest((SELECT last FROM {new}.erasures), (SELECT last FROM {old}.erasures))
                + row_number() OVER (ORDER BY gone.erasure)
            FROM {old}.subjects AS gone WHERE gone.erased_at IS NOT NULL AND NOT EXISTS
                (SELECT FROM {new}.subjects AS there WHERE there.subject = gone.subject AND there.erased_at IS NOT NULL)
            ON CONFLICT (subject) DO UPDATE SET key_ids = '{{}}', wrapped = '{{}}', erased_at = excluded.erased_at,
                erasure = excluded.erasure
        """  # noqa: S608  # quoted names
    )
    await connection.execute(
        f"""
            UPDATE {new}.erasures SET last = greatest(last, (SELECT last FROM {old}.erasures),
                (SELECT max(erasure) FROM {new}.subjects))
        """  # noqa: S608  # quoted names
    )
    return ()


@asynccontextmanager
async def _opened(address: PostgresAddress) -> AsyncIterator[PostgresKeyStore]:
    store = await PostgresKeyStore.open(address, connections=1)
    try:
        yield store
    finally:
        await store.close()


async def _refuse_other(address: PostgresAddress, manifest: Manifest) -> None:
    with explained_server(address, "reading the restored keys"):
        async with session(address) as connection, connection.transaction(readonly=True):
            counts, digest = await _held(connection)
    if (counts, digest) != (dict(manifest.made.counts), manifest.made.digest):
        raise BackupDamaged(f"the backup {manifest.id} does not hold the keys that its manifest says; use another one")


async def _held(connection: PostgresConnection) -> tuple[Mapping[str, int], str]:
    total = keys = erased = 0
    async for row in connection.cursor(_SUBJECTS, prefetch=_PAGE):
        subject = row["subject"].encode()
        for key_id, wrapped in zip(row["key_ids"], row["wrapped"], strict=True):
            total += int.from_bytes(hashlib.sha256(b"%s\x00%s\x00%s" % (subject, key_id.encode(), wrapped)).digest())
            keys += 1
        if row["erased"]:
            total += int.from_bytes(hashlib.sha256(b"%s\x00\x00" % subject).digest())
            erased += 1
    revocations = 0
    if await connection.fetchval(_HAS_REVOCATIONS):
        revocations = await connection.fetchval(_REVOCATIONS)
    return {"keys": keys, "erasures": erased, "revocations": revocations}, f"{total % _MODULUS:064x}"


def _schema_of(manifest: Manifest) -> str:
    return manifest.made.references.get("schema", "kiseki_keys")
