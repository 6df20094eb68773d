"""What makes a read model's values the same on PostgreSQL as on SQLite. Used for each engine of PostgreSQL read models.

SQLite compares text byte by byte, has one kind of whole number, of 64 bits, and takes text of any length. So here text
columns are made with the collation "C" whatever the database's own one is (UTF-8 in the order of its bytes is in the
order of its code points), lengths of text are not enforced, and every whole number has 64 bits. A projection that works
on one database then does not park streams on the other. All of it concerns one engine's dialect, nothing global.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import BigInteger, Column, Dialect, Integer, SmallInteger
from sqlalchemy.dialects.postgresql.base import PGTypeCompiler

__all__ = ["as_on_sqlite"]

_NUMERIC: Final = 1700
"""PostgreSQL's number of the type `numeric` (pg_type.oid), which sums of 64-bit numbers have."""


def as_on_sqlite(dialect: Dialect) -> None:
    """Changes the dialect of an engine that nothing was executed on yet."""
    dialect.type_compiler_instance = _Types(dialect)
    # Otherwise an Enum column would be a type of its own, in the order of its definition and not of its text.
    dialect.supports_native_enum = False
    dialect.colspecs = {
        **dialect.colspecs,
        Integer: _WholeNumber,
        SmallInteger: _WholeNumber,
        BigInteger: _WholeNumber,
    }


class _Types(PGTypeCompiler):
    """How types are written: in columns that are made, and where a value's type is said in a statement."""

    def visit_INTEGER(self, type_: Any, **options: Any) -> str:  # noqa: N802  # SQLAlchemy's name
        return "BIGINT"

    def visit_SMALLINT(self, type_: Any, **options: Any) -> str:  # noqa: N802  # SQLAlchemy's name
        return "BIGINT"

    def visit_VARCHAR(self, type_: Any, **options: Any) -> str:  # noqa: N802  # SQLAlchemy's name
        return self._text(type_, options)

    def visit_CHAR(self, type_: Any, **options: Any) -> str:  # noqa: N802  # SQLAlchemy's name
        return self._text(type_, options)  # PostgreSQL's CHAR pads with blanks

    def visit_TEXT(self, type_: Any, **options: Any) -> str:  # noqa: N802  # SQLAlchemy's name
        return self._text(type_, options)

    def _text(self, type_: Any, options: dict[str, Any]) -> str:
        if not isinstance(options.get("type_expression"), Column):
            return "TEXT"  # in a statement; a collation there would be a syntax error
        return self._render_string_type("TEXT", None, type_.collation or "C")


class _WholeNumber(BigInteger):
    """Whole numbers as asyncpg sends and receives them."""

    render_bind_cast = True

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        return _whole if coltype == _NUMERIC else None


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, Decimal) else value
