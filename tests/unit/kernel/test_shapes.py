"""Shapes: parsing collects every error, storing refuses what a store can't hold, loading gives back what was there."""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiseki import ERASED, Command, DefinitionError, Personal, State, StreamId, Text, ValueObject, WholeNumber
from kiseki.kernel.record import Record
from kiseki.kernel.shapes import FAILED, FieldError, RecordShape, Unreadable, Unstorable, camel_case, shape_of


class Name(Text, max_length=5):
    pass


class Count(WholeNumber, minimum=0, maximum=9):
    pass


class Colour(Enum):
    RED = 1
    BLUE = 2


class Inner(ValueObject):
    name: Name
    count: Count = Count(0)


class Everything(Command):
    account_id: StreamId
    name: Name
    inner: Inner
    names: tuple[Name, ...]
    colour: Colour
    at: datetime
    day: date
    amount: Decimal
    yes: bool
    ratio: float
    plain: str
    number: int
    maybe: Name | None = None


GOOD = {
    "accountId": "x", "name": "n", "inner": {"name": "i", "count": 3}, "names": ["a", "b"], "colour": "RED",
    "at": "2026-01-02T03:04:05.000006+09:00", "day": "2026-01-02", "amount": "1.50", "yes": True, "ratio": 1,
    "plain": "line\nbreak", "number": 7,
}  # fmt: skip


def parse(cls: type[Record], value: object) -> tuple[object, list[FieldError]]:
    errors: list[FieldError] = []
    return RecordShape(cls).parse(value, (), errors), errors


def test_a_good_input_becomes_typed() -> None:
    typed, errors = parse(Everything, GOOD)
    assert errors == []
    assert isinstance(typed, Everything)
    assert typed.inner == Inner(Name("i"), Count(3))
    assert typed.at == datetime(2026, 1, 1, 18, 4, 5, 6, tzinfo=UTC)
    assert typed.names == (Name("a"), Name("b"))
    assert typed.maybe is None
    assert isinstance(typed.ratio, float)


def test_all_errors_are_told_at_once_one_per_field_and_none_repeats_a_value() -> None:
    bad = {
        "accountId": "a b", "name": "toolong", "inner": {"name": None, "count": 10, "zzz": 1}, "names": ["ok", 3],
        "colour": "GREEN", "at": "2026-01-02T03:04:05", "day": "soon", "amount": "NaN", "yes": 1, "ratio": "x",
        "plain": "a\0", "number": 2**31, "extra": "secret",
    }  # fmt: skip
    typed, errors = parse(Everything, bad)
    assert typed is FAILED
    assert {(error.path, error.code) for error in errors} == {
        (("accountId",), "INVALID_ID"), (("name",), "TOO_LONG"), (("inner", "name"), "REQUIRED"),
        (("inner", "count"), "OUT_OF_RANGE"), (("inner", "zzz"), "UNKNOWN_FIELD"), (("names", 1), "WRONG_TYPE"),
        (("colour",), "WRONG_TYPE"), (("at",), "WRONG_TYPE"), (("day",), "WRONG_TYPE"), (("amount",), "OUT_OF_RANGE"),
        (("yes",), "WRONG_TYPE"), (("ratio",), "WRONG_TYPE"), (("plain",), "FORBIDDEN_CHARACTER"),
        (("number",), "OUT_OF_RANGE"), (("extra",), "UNKNOWN_FIELD"),
    }  # fmt: skip
    assert len(errors) == 15
    assert not any(word in error.message for error in errors for word in ("toolong", "GREEN", "soon", "secret"))


def test_missing_fields_are_named() -> None:
    _, errors = parse(Everything, {})
    assert {error.path[0] for error in errors} == set(GOOD)
    assert {error.code for error in errors} == {"REQUIRED"}


@pytest.mark.parametrize("value", [None, 1, "x", [], True])
def test_what_is_not_an_object_is_refused(value: object) -> None:
    assert parse(Inner, value) == (FAILED, [FieldError((), "WRONG_TYPE", "must be an object")])


def test_an_explicit_null_takes_the_default() -> None:
    assert parse(Inner, {"name": "n", "count": None}) == (Inner(Name("n")), [])


def test_a_list_is_bounded() -> None:
    class Many(Command):
        names: tuple[Name, ...]

    _, errors = parse(Many, {"names": ["a"] * 1001})
    assert [error.code for error in errors] == ["TOO_LONG"]


class One(State):
    name: Personal[Name]
    tags: frozenset[str]
    held: Mapping[str, int]
    at: datetime
    amount: Decimal
    colour: Colour | None


class Two(State):
    inner: tuple[Inner, ...]


states = st.one_of(
    st.builds(
        One,
        name=st.one_of(st.just(ERASED), st.just(Name("n"))),
        tags=st.frozensets(st.text(alphabet="abc")),
        held=st.dictionaries(st.text(alphabet="abc"), st.integers(-(2**63), 2**63 - 1)),
        at=st.datetimes(timezones=st.just(UTC)),
        amount=st.decimals(allow_nan=False, allow_infinity=False),
        colour=st.sampled_from([*Colour, None]),
    ),
    st.builds(Two, inner=st.lists(st.builds(Inner, name=st.just(Name("x")), count=st.just(Count(1)))).map(tuple)),
)


@given(states)
def test_what_is_dumped_loads_as_the_same(state: One | Two) -> None:
    shape = shape_of(One | Two)
    assert shape.load(shape.dump(state)) == state


def test_what_a_store_can_not_hold_is_refused_before_it_is_a_fact() -> None:
    class Loose(State):
        text: str = ""
        number: int = 0
        ratio: float = 0.0
        at: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    shape = shape_of(Loose)
    for bad in (
        Loose(text="a\0"), Loose(text="\ud800"), Loose(number=2**63), Loose(ratio=float("nan")),
        Loose(ratio=float("inf")), Loose(at=datetime(2026, 1, 1)),
    ):  # fmt: skip
        with pytest.raises(Unstorable):
            shape.dump(bad)


def test_stored_data_is_trusted_even_when_rules_became_stricter() -> None:
    loaded = shape_of(Inner).load({"name": "longer than five", "count": 99})
    assert loaded.name == "longer than five"
    assert loaded.count == 99


def test_a_field_added_with_a_default_reads_old_data_and_one_without_does_not() -> None:
    assert shape_of(Inner).load({"name": "n"}) == Inner(Name("n"))
    with pytest.raises(Unreadable, match="name"):
        shape_of(Inner).load({"count": 1})


@pytest.mark.parametrize("annotation", [list[str], dict[int, str], object, str | int, bytes, set[str], tuple[int, str]])
def test_types_without_a_stored_form_are_refused_with_advice(annotation: object) -> None:
    with pytest.raises(DefinitionError, match=r"Order\.field"):
        shape_of(annotation, "Order.field")


def test_a_repr_shows_no_value() -> None:
    assert repr(Inner(Name("Taro"))) == "Inner(name, count)"


def test_names_on_the_wire() -> None:
    assert camel_case("user_account_id") == "userAccountId"
