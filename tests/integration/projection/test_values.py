"""The same values and the same order on every database, whatever the database's own collation is."""

from __future__ import annotations

import random
from datetime import date, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CHAR,
    JSON,
    Boolean,
    Column,
    Date,
    Enum,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    Uuid,
    func,
    insert,
    select,
)

from kiseki import Projection, UtcDateTime
from kiseki.projection.port import Batch, BuildName
from kiseki.projection.subscription import Subscription
from tests.integration.projection.parts import Place, PostgresStorage
from tests.unit.projection.parts import DECIDERS, Counted, World

WORDS = ["", " a", "a b", "a", "B", "ab", "Ab", "Z", "z", "ä", "Ä", "é", "_", "-", "0", "10", "9"]
WORDS += ["ﬀ", "ß", "ss", "İ", "太郎", "花子", "𝔸", "\uffee"]
"""Which languages put into other orders than their code points do."""

metadata = MetaData(schema="values_of")
values = Table(
    "values_of",
    metadata,
    Column("id", String(3), primary_key=True),
    Column("short", SmallInteger),
    Column("whole", Integer),
    Column("flag", Boolean),
    Column("part", Float),
    Column("at", UtcDateTime),
    Column("day", Date),
    Column("text", Text),
    Column("padded", CHAR(20)),
    Column("kind", Enum("z", "a", name="kind")),
    Column("raw", LargeBinary),
    Column("tree", JSON),
    Column("key", Uuid),
)
projection = Projection("values_of", version=1, tables=[values], events=Counted, apply=lambda *_: ())
definition = Subscription(projection, DECIDERS).definition


async def stored(place: Place, *rows: dict[str, Any]) -> None:
    build = await place.models.builds.create(projection, definition)
    store = await place.models.builds.open(projection, build.name, definition)
    await store.write(Batch(changes=[(insert(values), row) for row in rows]))
    await place.models.builds.promote(build.name)
    await store.close()


async def read(place: Place, statement: Any) -> list[tuple[Any, ...]]:
    async with place.models.database.open([projection]) as state:
        return [tuple(row) for row in await state.all(statement)]


async def test_what_is_written_is_what_is_read(place: Place) -> None:
    row = {
        "id": "longer than its column says",
        "short": 2**40,
        "whole": -(2**63),
        "flag": True,
        "part": 0.1,
        "at": datetime(2026, 2, 28, 23, 59, 59, 999_999, tzinfo=timezone(timedelta(hours=9))),
        "day": date(1, 1, 1),
        "text": "行 \t\r\n \\ ' \" % _ \u0001 \uffff 𝔸",
        "padded": "x",
        "kind": "a",
        "raw": bytes(range(256)),
        "tree": {"a": [1, None, {"b": "é"}]},
        "key": UUID(int=7),
    }
    await stored(place, row)
    (found,) = await read(place, select(values))
    assert found == tuple(row.values())
    assert all(isinstance(one, type(wanted)) for one, wanted in zip(found, row.values(), strict=True))
    assert found[5].utcoffset() == timedelta(0)
    assert await read(place, select(values.c.id).where(values.c.whole == -(2**63), values.c.flag.is_(True))) == [
        (row["id"],)
    ]


async def test_text_is_in_the_order_of_its_code_points(place: Place) -> None:
    words = WORDS.copy()
    random.Random(5).shuffle(words)
    await stored(place, *({"id": str(number), "text": word} for number, word in enumerate(words)))
    text = values.c.text
    in_order = sorted(WORDS)
    assert [word for (word,) in await read(place, select(text).order_by(text))] == in_order
    assert [word for (word,) in await read(place, select(text).order_by(text.desc()))] == in_order[::-1]
    for word in WORDS:
        later = await read(place, select(text).where(text > word).order_by(text))
        assert [one for (one,) in later] == in_order[in_order.index(word) + 1 :], word
    assert await read(place, select(func.max(text), func.min(text))) == [(in_order[-1], "")]


async def test_case_matters_and_only_that_of_ascii_is_known(place: Place) -> None:
    words = ["Ada", "ada", "ÄDA", "äda", "a%b", "a_b", "a\\b"]
    await stored(place, *({"id": str(number), "text": word} for number, word in enumerate(words)))
    text = values.c.text

    async def found(condition: Any) -> list[str]:
        return [word for (word,) in await read(place, select(text).where(condition).order_by(values.c.id))]

    assert await found(text.contains("da")) == ["Ada", "ada", "äda"]
    assert await found(text.like("A%")) == ["Ada"]
    assert await found(text.startswith("a%", autoescape=True)) == ["a%b"]
    assert await found(text.contains("\\", autoescape=True)) == ["a\\b"]
    assert await found(func.lower(text) == "ada") == ["Ada", "ada"]
    assert await found(func.upper(text) == "äDA") == ["äda"]
    assert await found(text.ilike("ADA")) == ["Ada", "ada"]


async def test_sums_are_whole_numbers(place: Place) -> None:
    await stored(place, *({"id": str(number), "whole": 2**40, "short": 7} for number in range(3)))
    ((total, small, count),) = await read(
        place, select(func.sum(values.c.whole), func.sum(values.c.short), func.count())
    )
    assert (total, small, count) == (3 * 2**40, 21, 3)
    assert {type(total), type(small), type(count)} == {int}


async def test_an_enumeration_is_in_the_order_of_its_text(place: Place) -> None:
    await stored(place, {"id": "1", "kind": "z"}, {"id": "2", "kind": "a"})
    assert await read(place, select(values.c.kind).order_by(values.c.kind)) == [("a",), ("z",)]


async def test_text_of_postgresql_has_the_collation_of_bytes(
    postgres: PostgresStorage,
) -> None:
    """The server of the tests has no other language to show it with."""
    place = Place(await World.new(), postgres, await postgres.open())
    await stored(place, {"id": "1"})
    schema = postgres.schema(BuildName("values_of", 1, 1))
    found = postgres.sql(
        "SELECT DISTINCT data_type, collation_name FROM information_schema.columns "
        f"WHERE table_schema = '{schema}' AND data_type IN ('text', 'character', 'character varying')"
    )
    assert found == "text|C"
    await place.models.close()
