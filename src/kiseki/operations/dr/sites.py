"""The two sites of a service as operations see them: this one's settings, the other one's, and what lies between.

Used by `kiseki dr`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from kiseki.application.system import SystemClock
from kiseki.journal.transfer.transferable import TransferableJournal
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.operations.dr.replication import FailoverRefused, Replication
from kiseki.security.secrets.passwords import SecretPassword
from kiseki.security.secrets.source import SecretSource
from kiseki.service.settings import Settings, SettingsError
from kiseki.service.settings_sources import load_settings
from kiseki.service.store_urls import StoreKind, StoreUrls, store_urls
from kiseki.service.stores import open_journal

__all__ = ["other_settings", "read_journal", "replication_of"]

_SCHEMA: Final = "kiseki_journal"


def other_settings(file: Path | None, here: Settings) -> Settings | None:
    """The settings of the other site, from its file alone: the environment is this site's. Raises SettingsError."""
    if file is None:
        return None
    there = load_settings(options={}, environ={}, directory=Path.cwd(), config=file)
    if there.site and there.site == here.site:
        raise SettingsError(f"{file}: site is {there.site}, which is this one's; name the settings of the other site")
    if store_urls(there).journal == store_urls(here).journal:
        raise SettingsError(f"{file}: journal is the same as this site's; name the settings of the other site")
    return there


async def replication_of(here: Settings, there: Settings | None, secrets: SecretSource) -> Replication:
    """What carries the journal from the other site to this one. Raises FailoverRefused, SettingsError, Unavailable."""
    ours = store_urls(here)
    theirs = None if there is None else store_urls(there)
    if theirs is not None and theirs.journal.kind is not ours.journal.kind:
        raise FailoverRefused(
            f"the journal is on {ours.journal.kind} here and on {theirs.journal.kind} at the other site"
        )
    if ours.journal.kind is StoreKind.POSTGRESQL:
        from kiseki.clients.postgres import PostgresAddress  # noqa: PLC0415  # only where it is used
        from kiseki.operations.dr.postgres import PostgresReplication  # noqa: PLC0415

        parse = partial(PostgresAddress.parse, schema=_SCHEMA, passwords=partial(SecretPassword, secrets))
        return PostgresReplication(None if theirs is None else parse(theirs.journal.text), parse(ours.journal.text))
    if ours.journal.kind is StoreKind.DYNAMODB:
        return await _global_tables(ours, theirs)
    raise FailoverRefused(
        "the journal is a SQLite file of one machine, which no database replicates: restore it on the other machine "
        "with `kiseki backup restore`, from what `kiseki backup protect` copied"
    )


@asynccontextmanager
async def read_journal(settings: Settings, secrets: SecretSource) -> AsyncIterator[TransferableJournal]:
    """A journal to be read; on PostgreSQL nothing can be written through it.

    Raises Unavailable, DataDirectoryUnusable.
    """
    url = store_urls(settings).journal
    if url.kind is not StoreKind.POSTGRESQL:
        async with open_journal(settings, clock=SystemClock(), telemetry=NoTelemetry()) as journal:
            yield journal
        return
    from kiseki.clients.postgres import PostgresAddress  # noqa: PLC0415
    from kiseki.journal.postgres.journal import PostgresJournal  # noqa: PLC0415

    address = PostgresAddress.parse(url.text, schema=_SCHEMA, passwords=partial(SecretPassword, secrets))
    opened = await PostgresJournal.open(address, clock=SystemClock(), telemetry=NoTelemetry(), read_only=True)
    try:
        yield opened
    finally:
        await opened.close()


async def _global_tables(ours: StoreUrls, theirs: StoreUrls | None) -> Replication:
    """Of the tables that are in force here, which a restore may have made: those of the other site are the same ones,
    or there is nothing to fail over to."""
    from kiseki.clients.dynamodb import DynamoDbAddress, DynamoDbRefused, DynamoDbUnavailable  # noqa: PLC0415
    from kiseki.clients.dynamodb_generations import resolved  # noqa: PLC0415
    from kiseki.operations.dr.dynamodb import DynamoDbReplication, SharedTables  # noqa: PLC0415

    async def tables(urls: StoreUrls) -> SharedTables:
        address = DynamoDbAddress.parse(urls.journal.text)
        journal = await resolved(address, "journal")
        names = [journal.table(name) for name in ("journal", "claims", "snapshots")]
        compared = [journal.table("claims")]
        if urls.keys.text == urls.journal.text:
            keys = await resolved(address, "keys")
            names += [keys.table("keys"), keys.table("revocations")]
            compared += [keys.table("keys")]
        return SharedTables(journal, tuple(names), tuple(compared))

    if theirs is None:
        return DynamoDbReplication(None, await tables(ours))
    if DynamoDbAddress.parse(theirs.journal.text).prefix != DynamoDbAddress.parse(ours.journal.text).prefix:
        raise FailoverRefused("the tables of the two sites have different prefixes, so they are no replicas")
    replica = await tables(ours)
    try:
        primary = await tables(theirs)
    except DynamoDbUnavailable as problem:
        if isinstance(problem.__cause__, DynamoDbRefused):
            raise FailoverRefused(f"at the other site: {problem}") from problem
        # A forced failover has to get by without that region; nothing else goes on without comparing.
        return DynamoDbReplication(None, replica, unknown=f"which tables are in force at the other site: {problem}")
    if primary.tables != replica.tables:
        raise FailoverRefused(
            f"in force are {', '.join(replica.tables)} in {replica.address.region}, and {', '.join(primary.tables)} in "
            f"{primary.address.region}: since a restore they are no replicas; go to {replica.address.region} by "
            "`kiseki backup restore` there"
        )
    return DynamoDbReplication(primary, replica)
