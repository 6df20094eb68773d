"""`kiseki access show`: the whole policy of an application as one table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from kiseki.application.context import Application
from kiseki.cli.applications import load_application
from kiseki.cli.output import people_table, print_table
from kiseki.kernel.access import Allow
from kiseki.kernel.decider import command_name

__all__ = ["show"]


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    context: str
    kind: str
    operation: str
    every_object: list[str]
    own_object: list[str]
    own: str | None
    """The field that says whose object it is."""


def show(*, application: str | None, json: bool) -> None:
    """Prints who may do what. What is not listed is denied. Raises ApplicationNotFound, DefinitionError."""
    rows = list(_rows(load_application(application)))
    if json:
        print(msgspec.json.encode(rows).decode())
        return
    table = people_table(
        "Who may do what; everything else is denied", "context", "kind", "operation", "roles", "roles, own object only"
    )
    for row in rows:
        own = f"{', '.join(row.own_object)} (by {row.own})" if row.own_object else ""
        table.add_row(row.context, row.kind, row.operation, ", ".join(row.every_object), own)
    print_table(table)
    print("One's own object has the id that the token's claim userId names, or sub where there is none.")


def _rows(application: Application) -> Iterator[_Row]:
    def row(context: str, kind: str, operation: str, allow: Allow, **more: Any) -> _Row:
        return _Row(
            context=context,
            kind=kind,
            operation=operation,
            every_object=sorted(allow.roles),
            own_object=sorted(allow.owner),
            own=allow.of,
            **more,
        )

    for context in application.contexts:
        for command, allow in context.access.items():
            yield row(context.name, "command", command_name(command), allow)
        for query in context.queries:
            yield row(context.name, "query", query.name, query.allow)
        for page, query in context.admin.items():
            yield row(context.name, "admin page", f"GET /api/admin/{page}", query.allow)
    yield row("kiseki", "page", "GET /api/graphql/schema", Allow({"admin"}))
