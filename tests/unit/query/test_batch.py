"""Changes of a projection may go to the database together only where nothing can tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import (
    Column,
    Connection,
    ForeignKey,
    Integer,
    MetaData,
    Table,
    bindparam,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool

from kiseki import Change
from kiseki.projection.port import StatementFailed
from kiseki.query.batch import Changes

metadata = MetaData()
one = Table("one", metadata, Column("id", Integer, primary_key=True), Column("n", Integer))
two = Table("two", metadata, Column("id", Integer, primary_key=True), Column("n", Integer))
referring = Table("referring", metadata, Column("id", Integer, primary_key=True), Column("of", ForeignKey(one.c.id)))

ADD = {table.name: insert(table) for table in (one, two)}
MORE = {
    table.name: update(table).where(table.c.id == bindparam("of")).values(n=table.c.n * 2 + bindparam("by"))
    for table in (one, two)
}
REMOVE = {table.name: delete(table).where(table.c.id == bindparam("of")) for table in (one, two)}
COPY = update(two).where(two.c.id == bindparam("of")).values(n=select(func.sum(one.c.n)).scalar_subquery())


def a_database() -> Connection:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    metadata.create_all(engine)
    return engine.connect()


def changes_of(tables: Sequence[Table] | None) -> Changes:
    def explain(problem: Exception) -> type[StatementFailed] | None:
        return StatementFailed if isinstance(problem, SQLAlchemyError) else None

    return Changes(tables, explain=explain, describe=lambda problem: type(problem).__name__)


def rows(connection: Connection) -> list[Any]:
    return [connection.execute(select(table).order_by(table.c.id)).all() for table in (one, two)]


def one_change(kind: str, table: str, number: int) -> Change:
    match kind:
        case "add":
            return ADD[table].prefix_with("OR REPLACE"), {"id": number, "n": number}
        case "replace":
            return REPLACE[table], {"id": number, "n": number}
        case "more":
            return MORE[table], {"of": number, "by": number}
        case "remove":
            return REMOVE[table], {"of": number}
        case "copy":
            return COPY, {"of": number}
        case "plain":
            return update(one).values(n=one.c.n + 1)
    raise AssertionError(kind)


REPLACE = {name: statement.prefix_with("OR REPLACE") for name, statement in ADD.items()}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "replace", "more", "remove", "copy", "plain"]),
            st.sampled_from(["one", "two"]),
            st.integers(0, 3),
        ),
        max_size=30,
    )
)
def test_the_result_is_that_of_one_after_the_other(kinds: list[tuple[str, str, int]]) -> None:
    together, single = a_database(), a_database()
    changes = [one_change(*kind) for kind in kinds]
    changes_of([one, two]).execute(together, changes)
    for change in changes:
        statement, parameters = change if isinstance(change, tuple) else (change, None)
        single.execute(statement, parameters)
    assert rows(together) == rows(single)


def statements(tables: Sequence[Table] | None, changes: Sequence[Change]) -> list[tuple[str, int]]:
    """What reaches the database: the table, and how many rows go together."""
    connection = a_database()
    seen: list[tuple[str, int]] = []

    def note(_: Any, __: Any, statement: str, parameters: Any, ___: Any, many: bool) -> None:
        seen.append((statement.split()[2], len(parameters) if many else 1))

    event.listen(connection, "before_cursor_execute", note)
    changes_of(tables).execute(connection, changes)
    return seen


ALTERNATING: list[Change] = [(ADD[name], {"id": number, "n": 1}) for number in range(3) for name in ("one", "two")]


def test_statements_of_independent_tables_go_together() -> None:
    assert statements([one, two], ALTERNATING) == [("one", 3), ("two", 3)]


def test_a_statement_that_reads_another_table_keeps_its_place() -> None:
    changes: list[Change] = [ALTERNATING[0], (COPY, {"of": 0}), ALTERNATING[2], ALTERNATING[3]]
    assert [count for _, count in statements([one, two], changes)] == [1, 1, 1, 1]
    assert [count for _, count in statements([one, two], [*changes[1:2] * 2, *ALTERNATING])] == [2, 3, 3]


@pytest.mark.parametrize("tables", [None, [one, two, referring]])
def test_tables_that_refer_to_each_other_keep_the_order(tables: Sequence[Table] | None) -> None:
    assert statements(tables, ALTERNATING) == [("one", 1), ("two", 1)] * 3


def test_what_failed_is_named_without_values() -> None:
    connection = a_database()
    with pytest.raises(StatementFailed) as failed:
        changes_of([one, two]).execute(connection, [*ALTERNATING, (ADD["two"], {"id": 2, "n": 77})])
    assert failed.value.detail == "IntegrityError in insert two"
