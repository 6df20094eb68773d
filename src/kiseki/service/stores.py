"""The stores of one process, opened by the URLs of its settings: any journal with any read model.

Used by the composition root and by commands that look into stores.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Final, Self

from kiseki.application.system import SystemClock
from kiseki.clients.errors import NotMigrated
from kiseki.clients.urls import StoreUrlInvalid
from kiseki.journal.lease.guarded import guarded
from kiseki.journal.lease.holder import WriterLease
from kiseki.journal.port import START
from kiseki.kernel.errors import Unavailable
from kiseki.kernel.ports import Clock, Telemetry
from kiseki.projection.projection import Projection
from kiseki.security.erasure.binding import bind_key_store
from kiseki.security.erasure.ledger import ErasureLedger
from kiseki.security.identity.revocations import RevocationStore
from kiseki.security.key_store import KeyStore
from kiseki.security.masking import Masker
from kiseki.security.master_keys import MasterKeys, open_master_keys
from kiseki.security.protector import KeyProtector
from kiseki.security.secrets.source import SecretSource
from kiseki.service.audit import migrate_audit
from kiseki.service.erasures import migrate_ledger, open_ledger
from kiseki.service.lease import migrate_lease, writer_lease
from kiseki.service.restore_mark import refuse_pending_restore
from kiseki.service.secrets import opened_secrets, secrets_of, vault_of
from kiseki.service.settings import Settings, SettingsError
from kiseki.service.sqlite_stores import DataDirectory, SqliteStores
from kiseki.service.store_family import ReadModels, StoreFamily, StoreJournal
from kiseki.service.store_urls import StoreKind, StoreUrl, store_urls

__all__ = [
    "StoreNotReachable",
    "Stores",
    "migrate",
    "open_journal",
    "open_key_store",
    "open_read_models",
    "open_revocations",
    "uses_data_directory",
]


# Only what messages say of them: what does not answer is waited for, wherever it is.
_LEDGER: Final = StoreUrl("erasure_ledger", StoreKind.POSTGRESQL, "")
_LEASE: Final = StoreUrl("lease", StoreKind.POSTGRESQL, "")
_AUDIT: Final = StoreUrl("audit_database", StoreKind.POSTGRESQL, "")


class StoreNotReachable(Unavailable):
    """A store on another machine can't be used now; it may be later."""


class Stores:
    """The journal, the protector and the read models of one process, open."""

    def __init__(
        self,
        *,
        opened: AsyncExitStack,
        journal: StoreJournal,
        protector: KeyProtector,
        read_models: ReadModels,
        key_store: KeyStore,
        ledger: ErasureLedger,
        master_keys: MasterKeys,
        lease: WriterLease | None,
    ) -> None:
        self._opened = opened
        self.journal = journal
        self.protector = protector
        self.read_models = read_models
        self.key_store = key_store
        self.ledger = ledger
        self.master_keys = master_keys
        self.lease = lease
        """Permission to write; None where only one site is. Whoever writes has to run it."""

    @classmethod
    async def open(
        cls,
        settings: Settings,
        *,
        clock: Clock,
        telemetry: Telemetry,
        make: bool = True,
        secrets: SecretSource | None = None,
        begin_ledger: bool = False,
        restoring: bool = False,
    ) -> Self:
        """Opens what the settings name. With `make` embedded stores are made on first use, and in the development
        profile the tables of the others too; without it this only looks. `secrets` stays open; without it an own source
        is used. In production a ledger of erasures that is empty beside a journal that is not was lost, unless
        `begin_ledger` says that there never was one. `restoring`: for the restore itself, before which nobody else may.

        Raises StoreNotReachable for a store elsewhere that does not answer, NotMigrated for one that lacks tables,
        RestorePending between the switches of a restore, SettingsError, DataDirectoryUnusable, and what an embedded
        store refuses.
        """
        urls = store_urls(settings)
        directory = DataDirectory(settings.data_dir)
        if not restoring:
            await asyncio.to_thread(refuse_pending_restore, directory.path)
        if make and settings.development:
            await migrate(settings)
        if not make and _is_in(directory, urls.journal):
            directory.require_journal()
        if uses_data_directory(settings):
            await asyncio.to_thread(directory.prepare)
        async with AsyncExitStack() as opened:
            if secrets is None:
                secrets = secrets_of(settings, clock=clock, masker=Masker())
                opened.push_async_callback(secrets.close)
            journal = await _journal(settings, urls.journal, secrets, clock=clock, telemetry=telemetry)
            opened.push_async_callback(journal.close)
            lease = None
            if settings.lease:
                with _reached(_LEASE):
                    lease = await writer_lease(settings, journal, secrets=secrets, clock=clock, make=make)
                opened.push_async_callback(lease.let_go)
            with _reached(urls.keys):
                key_store = await _family(settings, urls.keys, secrets).keys(urls.keys)
                opened.push_async_callback(key_store.close)
                master_keys = await open_master_keys(
                    settings.master_key,
                    previous=settings.master_keys_previous,
                    default=directory.master_key,
                    vault=vault_of(settings),
                    make=make,
                )
                opened.push_async_callback(master_keys.close)
                protector = await KeyProtector.open(
                    store=key_store, wrapper=master_keys, clock=clock, ttl=settings.key_cache_seconds
                )
            # First: a wrong key store must not begin a ledger of its own.
            await bind_key_store(journal, key_store, protector.digests)
            # Not before: the binding is the same whoever writes it, and has to be compared by who only looks, too.
            if lease is not None:
                journal = guarded(journal, lease)
            # What is restored without its ledger must not begin a new one, and what only looks begins none.
            begin = make and (begin_ledger or settings.development or not (await journal.feed(START, limit=1)).commits)
            with _reached(_LEDGER):
                ledger = await open_ledger(
                    settings.erasure_ledger,
                    directory.path,
                    digests=protector.digests,
                    clock=clock,
                    secrets=secrets,
                    begin=begin,
                )
                opened.push_async_callback(ledger.close)
                protector.erasure_log = ledger
            with _reached(urls.read_model):
                read_models = await _family(settings, urls.read_model, secrets).read_models(
                    urls.read_model, clock=clock
                )
                opened.push_async_callback(read_models.close)
                await read_models.builds.builds()
            return cls(
                opened=opened.pop_all(),
                journal=journal,
                protector=protector,
                read_models=read_models,
                key_store=key_store,
                ledger=ledger,
                master_keys=master_keys,
                lease=lease,
            )

    async def check_writer(self) -> None:
        """Proves that this process may write, for readiness. Raises NotTheWriter."""
        if self.lease is not None:
            self.lease.check()

    async def check_journal(self) -> None:
        """Proves that the journal can be written now, for readiness. Raises Unavailable."""
        await self.journal.check()

    async def check_read_model(self, projection: Projection) -> None:
        """Proves that a build of a projection answers queries, for readiness. Raises Unavailable."""
        await self.read_models.database.progress(projection, ())

    async def check_keys(self) -> None:
        """Proves that the key store can be asked, for readiness. Raises Unavailable."""
        await self.protector.hear()

    async def close(self) -> None:
        """Closes all of them; what was accepted is finished first."""
        await self._opened.aclose()


def uses_data_directory(settings: Settings) -> bool:
    """Whether anything of a process is kept on this machine. Raises SettingsError."""
    return not settings.master_key or any(url.embedded for url in store_urls(settings))


@asynccontextmanager
async def open_journal(
    settings: Settings, *, clock: Clock, telemetry: Telemetry, make: bool = False
) -> AsyncIterator[StoreJournal]:
    """The journal alone, for commands that look into it. Without `make` it has to be there. Raises as Stores.open."""
    url = store_urls(settings).journal
    directory = DataDirectory(settings.data_dir)
    if make and url.embedded:
        await asyncio.to_thread(directory.prepare)
    elif _is_in(directory, url):
        directory.require_journal()
    async with opened_secrets(settings) as secrets:
        journal = await _journal(settings, url, secrets, clock=clock, telemetry=telemetry)
        try:
            yield journal
        finally:
            await journal.close()


async def open_key_store(settings: Settings, secrets: SecretSource) -> KeyStore:
    """The key store alone, without its master key, for commands that look into it. Raises as Stores.open."""
    url = store_urls(settings).keys
    with _reached(url):
        return await _family(settings, url, secrets).keys(url)


async def open_read_models(settings: Settings, secrets: SecretSource) -> ReadModels:
    """The read models alone, for commands that look after them. Raises as Stores.open."""
    url = store_urls(settings).read_model
    with _reached(url):
        if url.embedded:
            await asyncio.to_thread(DataDirectory(settings.data_dir).prepare)
        return await _family(settings, url, secrets).read_models(url, clock=SystemClock())


async def open_revocations(settings: Settings, secrets: SecretSource) -> RevocationStore:
    """Where revoked tokens are kept: with the keys. Contacts nothing yet. Raises as Stores.open."""
    url = store_urls(settings).keys
    with _reached(url):
        if url.embedded:
            await asyncio.to_thread(DataDirectory(settings.data_dir).prepare)
        return await _family(settings, url, secrets).revocations(url)


async def migrate(settings: Settings) -> Sequence[str]:
    """Makes and upgrades the tables of all stores that are not embedded; only ever adds. What was done, line by line.

    Embedded stores are made, and brought up to date, by opening them.
    Raises StoreNotReachable, SettingsError, and what a store refuses.
    """
    done: list[str] = []
    async with opened_secrets(settings) as secrets:
        for url in store_urls(settings):
            with _reached(url):
                done += await _family(settings, url, secrets).migrate(url)
        with _reached(_LEDGER):
            done += await migrate_ledger(settings.erasure_ledger, settings.data_dir, secrets=secrets)
        with _reached(_LEASE):
            done += await migrate_lease(settings, secrets)
        with _reached(_AUDIT):
            done += await migrate_audit(settings, secrets)
    return done


async def _journal(
    settings: Settings, url: StoreUrl, secrets: SecretSource, *, clock: Clock, telemetry: Telemetry
) -> StoreJournal:
    with _reached(url):
        journal = await _family(settings, url, secrets).journal(url, clock=clock, telemetry=telemetry)
        try:
            await journal.recall("reachable")  # the cheapest question that every store can answer
        except BaseException:
            await journal.close()
            raise
    return journal


def _family(settings: Settings, url: StoreUrl, secrets: SecretSource) -> StoreFamily:
    """The family of a store. Raises SettingsError when its libraries are not installed."""
    try:
        if url.kind is StoreKind.POSTGRESQL:
            from kiseki.service.postgres_stores import PostgresStores

            return PostgresStores(settings, secrets)
        if url.kind is StoreKind.DYNAMODB:
            from kiseki.service.dynamodb_stores import DynamoDbStores

            return DynamoDbStores(settings)
    except ModuleNotFoundError as problem:
        if (problem.name or "").startswith("kiseki"):
            raise
        extra = "postgres" if url.kind is StoreKind.POSTGRESQL else "aws"
        raise SettingsError(
            f"{url.setting} is on {url.kind}, but {problem.name} is not installed; pip install 'kiseki[{extra}]'"
        ) from problem
    return SqliteStores(DataDirectory(settings.data_dir))


def _is_in(directory: DataDirectory, url: StoreUrl) -> bool:
    return url.kind is StoreKind.SQLITE and url.text.removeprefix("sqlite:") in ("", str(directory.journal))


@contextmanager
def _reached(url: StoreUrl) -> Iterator[None]:
    """What a store elsewhere can't do now becomes StoreNotReachable; of embedded ones everything stays as it is.

    What is wrong with a URL is said with the setting's name.
    """
    try:
        yield
    except StoreUrlInvalid as problem:
        raise SettingsError(f"{url.setting}: {problem}") from problem
    except (NotMigrated, StoreNotReachable):
        raise
    except Unavailable as problem:
        if url.embedded:
            raise
        raise StoreNotReachable(f"{url.setting}: {problem}") from problem
