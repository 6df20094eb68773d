"""What a kind of store offers a process, whatever the kind: `StoreFamily`, with one module for each kind.

`stores` imports the module of a kind when its store is named, so that nobody needs the libraries of a store that is
not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kiseki.journal.port import SnapshotStore
from kiseki.journal.transfer.transferable import TransferableJournal
from kiseki.kernel.ports import Clock, Telemetry
from kiseki.projection.port import BuildCatalog
from kiseki.query.database import ReadDatabase
from kiseki.security.identity.revocations import RevocationStore
from kiseki.security.key_store import KeyStore
from kiseki.service.store_urls import StoreUrl

__all__ = ["ReadModels", "StoreFamily", "StoreJournal"]


class StoreJournal(TransferableJournal, SnapshotStore, Protocol):
    """A journal that keeps snapshots too, and can be moved as a whole."""


class ReadModels(Protocol):
    """Both halves of a read-model database."""

    @property
    def builds(self) -> BuildCatalog: ...

    @property
    def database(self) -> ReadDatabase: ...

    async def close(self) -> None:
        """Lets running queries end, and lets go of the database."""
        ...


class StoreFamily(Protocol):
    """Opens the stores of one kind. What is on another machine is not contacted before it is used.

    Raises StoreUrlInvalid for a URL that can't be used, and what the store refuses.
    """

    async def migrate(self, url: StoreUrl) -> Sequence[str]:
        """Makes and upgrades the tables of a store; what was done, a line for each. Raises Unavailable."""
        ...

    async def journal(self, url: StoreUrl, *, clock: Clock, telemetry: Telemetry) -> StoreJournal:
        """A journal."""
        ...

    async def keys(self, url: StoreUrl) -> KeyStore:
        """A key store."""
        ...

    async def revocations(self, url: StoreUrl) -> RevocationStore:
        """Whose tokens are not believed any more, kept with the keys."""
        ...

    async def read_models(self, url: StoreUrl, *, clock: Clock) -> ReadModels:
        """A read-model database."""
        ...
