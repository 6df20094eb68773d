"""The contract of a read-model database to the query side; each kind of database implements it once.

The other half of the same database, what projections write through, is `kiseki.projection.port`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from kiseki.kernel.errors import KisekiError, Unavailable
from kiseki.projection.port import StreamProgress
from kiseki.projection.projection import Projection
from kiseki.query.query import ReadModel

__all__ = ["QueryFailed", "QueryTooSlow", "ReadDatabase", "ReadModelBuilding"]


class ReadModelBuilding(Unavailable):
    """No build of this version of the projection answers queries yet; it is being built."""


class QueryTooSlow(Unavailable):
    """A statement of a query ran longer than the limit and was stopped."""


class QueryFailed(KisekiError):
    """The database refused a statement of a query: a defect of the query. The cause is chained, for the log."""

    code = "INTERNAL"


class ReadDatabase(Protocol):
    """Reads live builds. Each call sees what was promoted before it."""

    def open(self, reads: Sequence[Projection]) -> AbstractAsyncContextManager[ReadModel]:
        """The tables of these projections in one consistent state, kept until the context ends.

        Entering raises ReadModelBuilding, DefinitionError (the build was made with other tables), Unavailable;
        so may the first statement, which is when the state is fixed.
        """
        ...

    async def progress(self, projection: Projection, streams: Collection[str]) -> Mapping[str, StreamProgress]:
        """How far the live build is in these streams, every one of which is in the answer.

        A state opened after this call returned is the same or a later one. Raises as `open`.
        """
        ...
