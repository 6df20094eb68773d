"""Changes of a projection may go to the database together only where nothing can tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import (
    Boolean,
    Column,
    Computed,
    Connection,
    DateTime,
    Dialect,
    Enum,
    ForeignKey,
    Identity,
    Integer,
    MetaData,
    Numeric,
    String,
    Table,
    Text,
    bindparam,
    case,
    create_engine,
    delete,
    event,
    func,
    insert,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy import (
    Sequence as DatabaseSequence,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import asyncpg
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool
from sqlalchemy.types import TypeDecorator

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

HIDDEN = {
    "one": update(one).where(one.c.id == bindparam("of")).values(n=text("(SELECT count(*) FROM two)")),
    "two": update(two).where(two.c.id == bindparam("of"), text("n NOT IN (SELECT id FROM one)")).values(n=two.c.n + 1),
}
"""Statements whose other table SQLAlchemy does not know."""


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
        case "hidden":
            return HIDDEN[table], {"of": number}
        case "plain":
            return update(one).values(n=one.c.n + 1)
    raise AssertionError(kind)


REPLACE = {name: statement.prefix_with("OR REPLACE") for name, statement in ADD.items()}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "replace", "more", "remove", "copy", "hidden", "plain"]),
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


# Which statements may change places


apart = MetaData(schema="apart")
rich = Table(
    "rich",
    apart,
    Column("id", Integer, primary_key=True),
    Column("n", Integer),
    Column("other", Integer),
    Column("name", String(200)),
    Column("Large Name", Text),
    Column("at", DateTime(timezone=True), server_default=func.now()),
    Column("open", Boolean, default=True, server_default=text("true")),
    Column("amount", Numeric(10, 2), server_default="7"),
    Column("mood", Enum("good", "bad", name="moods")),
    Column("from", Integer),
    Column("sum_of_other", Integer),
)
other = Table("other", apart, Column("id", Integer, primary_key=True), Column("n", Integer))
DIALECTS: list[Dialect] = [sqlite.dialect(), asyncpg.dialect()]  # type: ignore[no-untyped-call]
ONE_OF_OTHER = select(func.max(other.c.n)).scalar_subquery()
ADDING = upsert(rich)
aliased: Any = rich.alias("some")
CHANGING = update(rich).where(rich.c.id == bindparam("of"))


def target(statement: Any, dialect: Dialect, tables: Sequence[Table] = (rich, other)) -> Table | None:
    return changes_of(tables)._target(statement, dialect)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize(
    "statement",
    [
        insert(rich),
        insert(rich).values(id=bindparam("id"), n=bindparam("n")),
        insert(rich).values([{"id": 1, "n": 2}, {"id": 2, "n": 3}]),
        insert(rich).values(n=1),
        insert(rich).prefix_with("OR REPLACE"),
        insert(rich).returning(rich.c.id),
        ADDING.on_conflict_do_nothing(),
        ADDING.on_conflict_do_update(
            index_elements=[rich.c.id], set_={"n": rich.c.n + ADDING.excluded.n, "name": ADDING.excluded.name}
        ),
        CHANGING.values(n=rich.c.n * 2 + bindparam("by"), other=bindparam("to"), mood=bindparam("how")),
        CHANGING.values({"Large Name": bindparam("text"), "open": False, "amount": None, "from": bindparam("since")}),
        CHANGING.values(name=func.lower(bindparam("name")), n=func.coalesce(rich.c.n, 0), at=func.now()),
        CHANGING.values(n=case((rich.c.n > 1, 2), else_=3)),
        update(rich).where(rich.c.name.startswith("a_", autoescape=True)).values(n=1),
        delete(rich).where(rich.c.id == bindparam("of")),
        delete(rich).where(rich.c.id.in_([1, 2]), rich.c.n.is_(None)),
        delete(rich).where(rich.c.id.in_(bindparam("ids", expanding=True)) | rich.c.n.between(1, 3)),
    ],
)
def test_what_touches_one_table_may_change_places(statement: Any, dialect: Dialect) -> None:
    assert target(statement, dialect) is rich


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize(
    "statement",
    [
        insert(rich).values(id=1, n=ONE_OF_OTHER),
        insert(rich).values([{"id": 1, "n": ONE_OF_OTHER}]),
        insert(rich).values(id=1, n=text("(SELECT max(n) FROM apart.other)")),
        insert(rich).values(id=1, n=literal_column("(SELECT max(n) FROM apart.other)")),
        insert(rich).values(id=1, n=func.total_of_other()),
        insert(rich).values(id=1, n=func.sum_of_other()),
        insert(rich).values(id=1, n=func.apart.lower(1)),
        insert(rich).from_select(["id", "n"], select(other.c.id, other.c.n)),
        insert(rich).from_select(["id", "n"], text("SELECT id, n FROM apart.other").columns(other.c.id, other.c.n)),
        insert(rich).values(id=1).add_cte(select(other).cte("more")),
        insert(rich).values(id=1).add_cte(delete(other).returning(other.c.id).cte("less")),
        insert(rich).values(id=1).returning(ONE_OF_OTHER),
        insert(rich).values(id=1).returning(literal_column("(SELECT max(n) FROM apart.other)")),
        ADDING.on_conflict_do_update(index_elements=[rich.c.id], set_={"n": ONE_OF_OTHER}),
        ADDING.on_conflict_do_update(index_elements=[rich.c.id], set_={"n": text("(SELECT max(n) FROM apart.other)")}),
        ADDING.on_conflict_do_update(index_elements=[rich.c.id], set_={"n": 1}, where=ONE_OF_OTHER > 1),
        CHANGING.values(n=ONE_OF_OTHER),
        CHANGING.values(n=other.c.n).where(other.c.id == rich.c.other),
        CHANGING.values(n=1).where(select(other).exists()),
        CHANGING.values(n=1).where(rich.c.n.op("|| (SELECT max(n) FROM apart.other) ||")(1)),
        CHANGING.values(n=1).where(text("n IN other")),
        CHANGING.values(n=1).where(text("n IN (TABLE apart.other)")),
        CHANGING.values(n=1).where(text("$$'$$ = (SELECT max(name) FROM apart.other) || $$'$$")),
        CHANGING.values(n=1).where(text("/* ' */ n = (SELECT max(n) FROM apart.other) /* ' */")),
        CHANGING.values(n=text('1; UPDATE apart."other" SET n = 2')),
        CHANGING.values(n=text("1; END")),
        CHANGING.prefix_with("other, ").values(n=1),
        update(aliased).values(n=1),
        delete(rich).where(rich.c.id == other.c.id),
        delete(rich).where(rich.c.id.in_(select(other.c.id))),
        delete(rich).where(func.json_each("[]").table_valued("value").c.value == "1"),
        insert(Table("rich", MetaData(schema="apart"), Column("id", Integer))),
    ],
)
def test_what_may_touch_another_table_keeps_its_place(statement: Any, dialect: Dialect) -> None:
    assert target(statement, dialect) is None


class Shouting(TypeDecorator[str]):
    """A type that has the database do something to each value."""

    impl = String
    cache_ok = True

    def bind_expression(self, bindparam: Any) -> Any:
        return func.total_of_other(bindparam)


def a_table(*columns: Column[Any], **options: Any) -> Table:
    return Table("lone", MetaData(schema="apart"), Column("id", Integer, primary_key=True), *columns, **options)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize(
    ("table", "alone"),
    [
        (a_table(Column("n", Integer, default=7, onupdate=8)), True),
        (a_table(Column("n", Integer, server_default="7")), True),
        (a_table(Column("n", Integer, Identity())), True),
        (a_table(Column("n", Integer, Computed("id * 2"))), True),
        (a_table(Column("n", Integer, Computed("total_of_other(id)"))), False),
        (a_table(Column("n", Integer, default=lambda: 7)), False),
        (a_table(Column("n", Integer, default=ONE_OF_OTHER)), False),
        (a_table(Column("n", Integer, onupdate=ONE_OF_OTHER)), False),
        (a_table(Column("n", Integer, onupdate=lambda: 7)), False),
        (a_table(Column("n", Integer, DatabaseSequence("numbers"))), False),
        (a_table(Column("n", Integer, server_default=text("total_of_other()"))), False),
        (a_table(Column("n", Integer, server_default=func.nextval("numbers"))), False),
        (a_table(Column("n", Shouting())), False),
        (a_table(postgresql_inherits="other"), False),
        (a_table(Column("of", ForeignKey(other.c.id))), False),
    ],
)
def test_columns_that_may_touch_another_table_keep_their_table_s_place(
    table: Table, alone: bool, dialect: Dialect
) -> None:
    for statement in (insert(table), update(table).values(id=1), delete(table)):
        assert (target(statement, dialect, [table, other]) is table) is alone


def test_parameters_that_a_statement_does_not_name_are_looked_at_too() -> None:
    table = a_table(Column("n", Shouting()))
    assert target(insert(table).values(id=bindparam("id")), DIALECTS[0], [table, other]) is None


def test_what_failed_is_named_without_values() -> None:
    connection = a_database()
    with pytest.raises(StatementFailed) as failed:
        changes_of([one, two]).execute(connection, [*ALTERNATING, (ADD["two"], {"id": 2, "n": 77})])
    assert failed.value.detail == "IntegrityError in insert two"
