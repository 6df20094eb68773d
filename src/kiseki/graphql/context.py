"""`RequestContext`: what the fields of one document share: who asks, what they wrote, and what to wait for."""

from __future__ import annotations

from typing import Any, Final, Protocol

import msgspec

from kiseki.command.handler import CommandHandler, CommandRequest, CommandResult
from kiseki.command.idempotency import IdempotencyKey
from kiseki.kernel.command import Command
from kiseki.kernel.errors import KisekiError
from kiseki.kernel.ports import AccessPolicy, AuditEvent, Auditor, Principal
from kiseki.query.consistency import ConsistencyToken
from kiseki.query.query import Query

__all__ = ["Forbidden", "QueryRunner", "RequestContext"]


_TARGET: Final = 500
"""Characters of the ids that an audit record holds."""


class Forbidden(KisekiError):
    """The principal may not do this to the object it names. Says nothing of whether there is such an object."""

    code = "FORBIDDEN"

    def __init__(self, operation: str) -> None:
        super().__init__(f"{operation} is allowed for your own account only")


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
        access: AccessPolicy,
        auditor: Auditor,
        denied: AuditEvent,
        correlation_id: str,
        token: ConsistencyToken | None,
        idempotency_key: str | None,
        commands: CommandHandler | None,
        queries: QueryRunner | None,
    ) -> None:
        """`denied` is what is recorded, with the operation's name, when an object rule refuses."""
        self.token = token
        self.wrote = False
        self._principal = principal
        self._access = access
        self._auditor = auditor
        self._denied = denied
        self._correlation_id = correlation_id
        self._key = None if idempotency_key is None else IdempotencyKey(principal.subject, idempotency_key)
        self._commands = commands
        self._queries = queries

    async def send(self, name: str, command: Command) -> CommandResult:
        """Handles a command. Raises Forbidden, and what CommandHandler.handle raises."""
        assert self._commands is not None, f"{name} needs a command handler"  # noqa: S101  # the schema's own doing
        self._require(name, command)
        about = self._access.administration(self._principal, name, command)
        if about is not None:
            await self._auditor.record(self._administered(name, about))
        result = await self._commands.handle(
            command,
            CommandRequest(actor=self._principal.actor, correlation_id=self._correlation_id, idempotency_key=self._key),
        )
        self.token = (self.token or ConsistencyToken()).with_stream(result.stream, result.sequence_number)
        self.wrote = True
        return result

    async def ask(self, query: Query, arguments: Any) -> object:
        """Answers a query, not older than the token that came with it. Raises Forbidden, and what asking raises."""
        assert self._queries is not None, f"{query.name} needs a query runner"  # noqa: S101  # the schema's own doing
        self._require(query.name, arguments)
        about = self._access.administration(self._principal, query.name, arguments)
        if about is not None:
            self._auditor.note(self._administered(query.name, about))
        return await self._queries.ask(query, arguments, subject=self._principal.subject, token=self.token)

    def _require(self, name: str, given: object) -> None:
        """Checks roles and object rules where the operation is done, whatever was checked before."""
        if not self._access.allows_on(self._principal, name, given):
            self._auditor.note(msgspec.structs.replace(self._denied, operation=name, code="NOT_OWN"))
            raise Forbidden(name)

    def _administered(self, name: str, about: str) -> AuditEvent:
        return msgspec.structs.replace(
            self._denied, kind=f"admin.{name}", outcome="done", operation=name, target=about[:_TARGET] or None
        )
