"""Variables that do not fit: one error for each field, with its path, never with the value."""

from __future__ import annotations

from typing import Any

import pytest
from graphql import OperationDefinitionNode, build_schema, parse

from kiseki.graphql.variables import check_variables

SCHEMA = build_schema(
    """
    type Query { a: Int }
    input In { name: String!  count: Int = 3  inner: In  tags: [String!]  colour: Colour }
    enum Colour { RED BLUE }
    """
)


def errors_of(declared: str, given: dict[str, Any]) -> set[tuple[tuple[str | int, ...], str]]:
    operation = parse(f"query ({declared}) {{ a }}").definitions[0]
    assert isinstance(operation, OperationDefinitionNode)
    found = check_variables(SCHEMA, operation, given)
    assert not any("secret" in error.message for error in found)
    return {(error.path, error.code) for error in found}


@pytest.mark.parametrize(
    ("declared", "given"),
    [
        ("$i: In!", {"i": {"name": "x", "tags": ["a"], "inner": {"name": "y"}, "colour": "RED"}}),
        ("$i: In", {}),
        ("$i: In", {"i": None}),
        ("$n: Int! = 3", {}),
        ("$l: [String!]!", {"l": "one"}),
        ("$i: In!", {"i": {"name": "x"}, "unused": 1}),
    ],
)
def test_what_fits(declared: str, given: dict[str, Any]) -> None:
    assert errors_of(declared, given) == set()


def test_everything_wrong_is_told_at_once() -> None:
    given = {
        "i": {
            "name": None,
            "count": "secret",
            "inner": {"nam": "secret"},
            "tags": ["a", None, 3],
            "colour": "GREEN",
            "extra": "secret",
        },
        "n": 2**40,
    }
    assert errors_of("$i: In!, $n: Int!, $m: String!", given) == {
        (("i", "name"), "REQUIRED"),
        (("i", "count"), "WRONG_TYPE"),
        (("i", "inner", "name"), "REQUIRED"),
        (("i", "inner", "nam"), "UNKNOWN_FIELD"),
        (("i", "tags", 1), "REQUIRED"),
        (("i", "tags", 2), "WRONG_TYPE"),
        (("i", "colour"), "WRONG_TYPE"),
        (("i", "extra"), "UNKNOWN_FIELD"),
        (("n",), "WRONG_TYPE"),
        (("m",), "REQUIRED"),
    }


@pytest.mark.parametrize("value", ["x", 1, [], True])
def test_an_object_is_an_object(value: object) -> None:
    assert errors_of("$i: In!", {"i": value}) == {(("i",), "WRONG_TYPE")}


def test_a_flood_of_errors_is_bounded() -> None:
    operation = parse("query ($l: [Int!]!) { a }").definitions[0]
    assert isinstance(operation, OperationDefinitionNode)
    assert len(check_variables(SCHEMA, operation, {"l": ["x"] * 5_000})) == 50
