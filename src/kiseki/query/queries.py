"""`Queries`: answers typed queries. Waits for the client's own writes, opens the read model, calls the handler.

Used by the query API; one for each process.
"""

from __future__ import annotations

import asyncio
from typing import Any

from kiseki.kernel.errors import KisekiError
from kiseki.kernel.ports import Clock, Telemetry
from kiseki.query.consistency import ConsistencyToken
from kiseki.query.database import ReadDatabase
from kiseki.query.query import Query
from kiseki.query.waiting import ConsistencyWaiter

__all__ = ["Queries"]


class Queries:
    """Runs queries against the live builds of their projections."""

    def __init__(
        self, *, database: ReadDatabase, waiter: ConsistencyWaiter, telemetry: Telemetry, clock: Clock
    ) -> None:
        self._database = database
        self._waiter = waiter
        self._telemetry = telemetry
        self._clock = clock

    async def ask(self, query: Query, arguments: Any, *, subject: str, token: ConsistencyToken | None) -> object:
        """The query's result, from a state that is not older than the token.

        Raises Stale, StreamParked, TooManyWaiters, Unavailable, QueryFailed, and what the handler raises.
        """
        started = self._clock.monotonic()
        outcome = "INTERNAL"
        try:
            if token:
                await self._waiter.wait(query.reads, token, subject=subject)
            async with self._database.open(query.reads) as read:
                result: object = await query.handler(arguments, read)
            outcome = "ok"
        except KisekiError as problem:
            outcome = problem.code
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._telemetry.query(query.name, outcome, self._clock.monotonic() - started)
        return result
