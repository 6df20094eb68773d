"""kiseki's own tables in each build of a projection, and the fingerprint of a projection's tables."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec
from sqlalchemy import BigInteger, CheckConstraint, Column, Dialect, Integer, MetaData, Table, Text
from sqlalchemy.exc import CompileError
from sqlalchemy.schema import CreateIndex, CreateTable

from kiseki.kernel.errors import DefinitionError
from kiseki.projection.port import BuildName, Definition
from kiseki.projection.projection import Projection

__all__ = [
    "BUILD_FORMAT",
    "BUILD_SCHEMA",
    "COMPARED_AT_MOST",
    "build_metadata",
    "builds_own",
    "check_definition",
    "check_tables",
    "definition_of",
    "guards",
    "parked",
    "stored_definition",
    "tables_fingerprint",
]

BUILD_FORMAT: Final = 1
"""Of the tables below. A build of another format is built again: it is derivable."""

BUILD_SCHEMA: Final = "kiseki_build"
"""Stands for the schema of the build at hand (schema_translate_map)."""

COMPARED_AT_MOST: Final = 1_000
"""Streams that a comparison of two builds gives at once."""

build_metadata: Final = MetaData(schema=BUILD_SCHEMA)

guards: Final = Table(
    "kiseki_guards",
    build_metadata,
    Column("stream", Text, primary_key=True),
    Column("sequence_number", BigInteger, nullable=False),
    sqlite_with_rowid=False,
    # PostgreSQL writes a moved guard into its own page, without touching the index, while there is room.
    postgresql_with={"fillfactor": 70},
)

parked: Final = Table(
    "kiseki_parked",
    build_metadata,
    Column("stream", Text, primary_key=True),
    Column("sequence_number", BigInteger, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("code", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("occurred_at", Text, nullable=False),
    Column("parked_at", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    sqlite_with_rowid=False,
)

builds_own: Final = Table(
    "kiseki_build",
    build_metadata,
    Column("id", Integer, CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
    Column("format", Integer, nullable=False),
    Column("position", Text, nullable=False),
    Column("tables", Text, nullable=False),
    Column("known", Text, nullable=False),
    Column("followed", Text, nullable=False),
)
"""One row: what the build was made with, and how far it is."""


def tables_fingerprint(projection: Projection, dialect: Dialect) -> str:
    """A hash of the statements that make a projection's tables (16 hex digits); white space does not count.

    Raises DefinitionError when there are no such statements on this database.
    """
    statements = []
    try:
        for table in projection.tables:
            statements.append(str(CreateTable(table).compile(dialect=dialect)))
            statements.extend(str(CreateIndex(index).compile(dialect=dialect)) for index in table.indexes)
    except CompileError as problem:
        raise DefinitionError(f"projection {projection.name}: its tables can't be made: {problem}") from problem
    plain = "\n".join(sorted(" ".join(statement.split()) for statement in statements))
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


def check_tables(projection: Projection, name: BuildName, *, stored: str, dialect: Dialect) -> None:
    """Compares the fingerprint that a build was made with. Raises DefinitionError."""
    if stored != tables_fingerprint(projection, dialect):
        raise DefinitionError(
            f"projection {projection.name}: its tables are not those that {name} was built with; raise its version to "
            f"{projection.version + 1}, and it is built beside the old one"
        )


def check_definition(projection: Projection, name: BuildName, definition: Definition, *, earlier: Definition) -> None:
    """Compares what a build was made with. Raises DefinitionError when it follows other events."""
    changed = definition.changed_since(earlier)
    if changed:
        raise DefinitionError(
            f"projection {projection.name}: it follows other events than {name} was built with ({', '.join(changed)}); "
            f"raise its version to {projection.version + 1}, and it is built beside the old"
        )


def stored_definition(definition: Definition) -> dict[str, str]:
    """A definition as a build stores it, by column."""
    return {
        "known": msgspec.json.encode(sorted(definition.known)).decode(),
        "followed": msgspec.json.encode(sorted(definition.followed)).decode(),
    }


def definition_of(known: str, followed: str) -> Definition:
    """The definition that a build has stored."""
    decode = msgspec.json.Decoder(frozenset[str]).decode
    return Definition(known=decode(known), followed=decode(followed))
