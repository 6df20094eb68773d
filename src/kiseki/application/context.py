"""`Context` and `Application`: what a service is made of, checked as a whole before anything runs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from kiseki.kernel.access import Allow, allow_of
from kiseki.kernel.command import Command
from kiseki.kernel.decider import Decider, command_name
from kiseki.kernel.errors import DefinitionError
from kiseki.kernel.ports import Principal
from kiseki.kernel.record import record_fields
from kiseki.kernel.schema import EventSchema
from kiseki.projection.projection import Projection
from kiseki.query.query import Query

__all__ = ["Application", "Context", "RoleAccess"]

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")


class Context:
    """A bounded context: its deciders, projections and queries, and who may send which command.

    `access` gives each command class the roles that may send it, or an Allow that also knows whose object it is;
    queries carry theirs themselves. A command without an entry is an error here, so that nothing is open, or closed,
    by oversight. `admin` names queries that are also answered at `GET /api/admin/<name>`, as pages for programs of
    administrators; they have the arguments `first` and `after`. Raises DefinitionError.
    """

    def __init__(
        self,
        name: str,
        *,
        deciders: Sequence[Decider[Any, Any, Any]],
        access: Mapping[type[Command], Allow | Collection[str]],
        projections: Sequence[Projection] = (),
        queries: Sequence[Query] = (),
        admin: Mapping[str, Query] = MappingProxyType({}),
    ) -> None:
        if not _NAME.fullmatch(name):
            raise DefinitionError(f"context {name!r}: a name is lower case letters, digits, _ and -")
        self.name = name
        self.deciders = tuple(deciders)
        self.projections = tuple(projections)
        self.queries = tuple(queries)
        self.access = MappingProxyType(_checked_access(name, self.deciders, access))
        self.admin = MappingProxyType(_checked_admin(name, self.queries, admin))

    def __repr__(self) -> str:
        return f"Context({self.name!r})"


class Application:
    """Contexts served together. Aggregate types, event, command, projection and query names are unique within it.

    Raises DefinitionError naming what clashes.
    """

    def __init__(self, contexts: Sequence[Context]) -> None:
        if not contexts:
            raise DefinitionError("an application has at least one context")
        self.contexts = tuple(contexts)
        _unique("context", (context.name for context in contexts))
        self.deciders = tuple(decider for context in contexts for decider in context.deciders)
        _unique("aggregate type", (decider.aggregate_type for decider in self.deciders))
        self.projections = tuple(projection for context in contexts for projection in context.projections)
        _unique("projection", (projection.name for projection in self.projections))
        self.queries = MappingProxyType({query.name: query for context in contexts for query in context.queries})
        _unique("query", (query.name for context in contexts for query in context.queries))
        _unique("admin page", (name for context in contexts for name in context.admin))
        self.admin: Mapping[str, Query] = MappingProxyType(
            {name: query for context in contexts for name, query in context.admin.items()}
        )
        _unique("command", (command_name(c) for decider in self.deciders for c in decider.command_types))
        self.commands: Mapping[str, type[Command]] = MappingProxyType(
            {command_name(c): c for decider in self.deciders for c in decider.command_types}
        )
        self.decider_of: Mapping[type[Command], Decider[Any, Any, Any]] = MappingProxyType(
            {c: decider for decider in self.deciders for c in decider.command_types}
        )
        self.schema = EventSchema(event for decider in self.deciders for event in decider.event_types)
        self.access = RoleAccess(self)
        _check_events(self)

    def __repr__(self) -> str:
        return f"Application({', '.join(context.name for context in self.contexts)})"


class RoleAccess:
    """The rule of every command and query of an application; what has no rule is denied. Implements AccessPolicy."""

    def __init__(self, application: Application) -> None:
        rules = {
            command_name(command): allow
            for context in application.contexts
            for command, allow in context.access.items()
        }
        rules.update({query.name: query.allow for query in application.queries.values()})
        self.rules: Mapping[str, Allow] = MappingProxyType(rules)

    @property
    def roles(self) -> frozenset[str]:
        """Every role that a rule names."""
        return frozenset().union(*(allow.roles | allow.owner for allow in self.rules.values()))

    def allows(self, principal: Principal, operation: str) -> bool:
        """As AccessPolicy."""
        rule = self.rules.get(operation)
        return rule is not None and rule.somewhere(principal)

    def allows_on(self, principal: Principal, operation: str, given: object) -> bool:
        """As AccessPolicy."""
        rule = self.rules.get(operation)
        return rule is not None and rule.on(principal, given)

    def administration(self, principal: Principal, operation: str, given: object) -> str | None:
        """As AccessPolicy."""
        rule = self.rules[operation]
        return (rule.objects(given) or "") if rule.administers(principal, given) else None


def _checked_access(
    name: str, deciders: Iterable[Decider[Any, Any, Any]], access: Mapping[type[Command], Allow | Collection[str]]
) -> dict[type[Command], Allow]:
    decider_of = {command: decider for decider in deciders for command in decider.command_types}
    for command in access:
        if command not in decider_of:
            raise DefinitionError(f"context {name}: access names {command.__name__}, which no decider here handles")
    found = {}
    for command in sorted(decider_of, key=lambda c: c.__name__):
        if command not in access:
            raise DefinitionError(
                f"context {name}: access has no roles for {command.__name__}; it would be denied to all"
            )
        own = decider_of[command].stream_id_field(command)
        found[command] = allow_of(access[command], f"context {name}: access of {command.__name__}", command, own)
    return found


def _checked_admin(name: str, queries: Sequence[Query], admin: Mapping[str, Query]) -> dict[str, Query]:
    for page, query in admin.items():
        if not _NAME.fullmatch(page):
            raise DefinitionError(f"context {name}: admin page {page!r}: a name is lower case letters, digits, _ and -")
        if query not in queries:
            raise DefinitionError(f"context {name}: admin page {page} answers {query.name}, which is no query of it")
        if query.allow.owner:
            raise DefinitionError(f"context {name}: admin page {page}: {query.name} is not for administrators alone")
        fields = {field.name for field in record_fields(query.arguments_type)}
        if fields != {"first", "after"}:
            raise DefinitionError(f"context {name}: admin page {page}: {query.name} has the arguments first and after")
    return dict(admin)


def _unique(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DefinitionError(f"two of the application's parts share the {what} {name}")
        seen.add(name)


def _check_events(application: Application) -> None:
    owner: dict[str, str] = {}
    for decider in application.deciders:
        for event in decider.event_types:
            other = owner.setdefault(event.event_type.name, decider.aggregate_type)
            if other != decider.aggregate_type:
                raise DefinitionError(
                    f"event {event.event_type.name} belongs to both {other} and {decider.aggregate_type}"
                )
    for projection in application.projections:
        for name in sorted(projection.event_names - owner.keys()):
            raise DefinitionError(
                f"projection {projection.name} follows {name}, which no decider of the application has"
            )
    known = set(application.projections)
    for query in application.queries.values():
        for projection in query.reads:
            if projection not in known:
                raise DefinitionError(f"query {query.name} reads {projection.name}, which is not in the application")
