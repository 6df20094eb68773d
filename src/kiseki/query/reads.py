"""Which projections a query's statement reads, against those that it named. Used by the readers of all databases."""

from __future__ import annotations

import weakref
from collections.abc import Set as AbstractSet
from typing import Any

from sqlalchemy import Select, Table
from sqlalchemy.sql import visitors

from kiseki.query.database import QueryFailed

__all__ = ["ReadsCheck"]


class ReadsCheck:
    """Refuses statements that read what nobody has waited for, nor fixed the state of."""

    def __init__(self) -> None:
        self._schemas: weakref.WeakKeyDictionary[object, frozenset[str]] = weakref.WeakKeyDictionary()

    def refuse(self, statement: Select[Any], named: AbstractSet[str], *, compiled: object = None) -> None:
        """Raises QueryFailed when the statement reads tables of a projection that is not among the named ones.

        `compiled`: what SQLAlchemy keeps for statements like it. Looking into a statement costs as much as running it,
        so it is done once for each.
        """
        schemas = None if compiled is None else self._schemas.get(compiled)
        if schemas is None:
            parts = visitors.iterate(statement)
            schemas = frozenset(part.schema for part in parts if isinstance(part, Table) and part.schema is not None)
            if compiled is not None:
                self._schemas[compiled] = schemas
        if not schemas <= named:
            others = ", ".join(sorted(schemas - named))
            raise QueryFailed(f"a query reads tables of {others}, which its `reads` does not name")
