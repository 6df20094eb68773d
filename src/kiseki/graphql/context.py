"""`RequestContext`: what the fields of one document share: who asks, what they wrote, and what to wait for."""

from __future__ import annotations

from typing import Any, Protocol

from kiseki.command.handler import CommandHandler, CommandRequest, CommandResult
from kiseki.command.idempotency import IdempotencyKey
from kiseki.kernel.command import Command
from kiseki.kernel.ports import Principal
from kiseki.query.consistency import ConsistencyToken
from kiseki.query.query import Query

__all__ = ["QueryRunner", "RequestContext"]


class QueryRunner(Protocol):
    """Answers typed queries."""

    async def ask(self, query: Query, arguments: Any, *, subject: str, token: ConsistencyToken | None) -> object:
        """The query's result, not older than the token. Raises Stale, StreamParked, TooManyWaiters, Unavailable."""
        ...


class RequestContext:
    """One document's context. `token` grows by every stream the document writes."""

    def __init__(
        self,
        *,
        principal: Principal,
        correlation_id: str,
        token: ConsistencyToken | None,
        idempotency_key: str | None,
        commands: CommandHandler | None,
        queries: QueryRunner | None,
    ) -> None:
        self.token = token
        self.wrote = False
        self._principal = principal
        self._correlation_id = correlation_id
        self._key = None if idempotency_key is None else IdempotencyKey(principal.subject, idempotency_key)
        self._commands = commands
        self._queries = queries

    async def send(self, name: str, command: Command) -> CommandResult:
        """Handles a command. Raises what CommandHandler.handle raises."""
        assert self._commands is not None, f"{name} needs a command handler"  # noqa: S101  # the schema's own doing
        result = await self._commands.handle(
            command,
            CommandRequest(actor=self._principal.actor, correlation_id=self._correlation_id, idempotency_key=self._key),
        )
        self.token = (self.token or ConsistencyToken()).with_stream(result.stream, result.sequence_number)
        self.wrote = True
        return result

    async def ask(self, query: Query, arguments: Any) -> object:
        """Answers a query, not older than the token that came with the request."""
        assert self._queries is not None, f"{query.name} needs a query runner"  # noqa: S101  # the schema's own doing
        return await self._queries.ask(query, arguments, subject=self._principal.subject, token=self.token)
