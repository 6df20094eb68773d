"""What documents cost."""

from __future__ import annotations

from typing import Any

import pytest

from kiseki.graphql.cost import cost_of
from kiseki.graphql.documents import DocumentCache
from kiseki.graphql.limits import DocumentLimits
from kiseki.graphql.schema import query_schema
from kiseki.users import app

DOCUMENTS = DocumentCache(query_schema(app), limits=DocumentLimits(), introspection=True)


def cost(text: str, **variables: Any) -> int:
    operation = DOCUMENTS.get(text).operation(None)
    return cost_of(operation.field_nodes, {**operation.defaults, **variables})


@pytest.mark.parametrize(
    ("text", "variables", "units"),
    [
        ("{ getUserAccounts { id } }", {}, 1),
        ("{ a: getUserAccounts { id } b: getUserAccounts { id } c: getUserAccounts { id } }", {}, 3),
        ("{ ...F } fragment F on Query { a: getUserAccounts { id } b: getUserAccounts { id } }", {}, 2),
        ("{ ... on Query { a: getUserAccounts { id } } b: __typename }", {}, 2),
        ("{ getUserAccounts(first: 100) { id } }", {}, 1),
        ("{ getUserAccounts(first: 101) { id } }", {}, 2),
        ("{ getUserAccounts(first: 1000) { id } }", {}, 10),
        ("query ($n: Int) { getUserAccounts(first: $n) { id } }", {"n": 1_000}, 10),
        ("query ($n: Int) { getUserAccounts(first: $n) { id } }", {"n": None}, 1),
        ("query ($n: Int) { getUserAccounts(first: $n) { id } }", {}, 1),
        ("query ($n: Int) { getUserAccounts(first: $n) { id } }", {"n": 1000.0}, 10),
        ("query ($n: Int = 1000) { getUserAccounts(first: $n) { id } }", {}, 10),
        ("query ($n: Int = 1000) { getUserAccounts(first: $n) { id } }", {"n": 1}, 1),
        ('{ getUserAccountsByIds(userAccountIds: ["a", "b"]) { id } }', {}, 1),
        (
            "query ($ids: [String!]!) { getUserAccountsByIds(userAccountIds: $ids) { id } }",
            {"ids": [str(n) for n in range(250)]},
            3,
        ),
        (
            "query ($ids: [String!]!) { a: getUserAccountsByIds(userAccountIds: $ids) { id } "
            "b: getUserAccountsByIds(userAccountIds: $ids) { id } }",
            {"ids": [str(n) for n in range(101)]},
            4,
        ),
    ],
)
def test_units(text: str, variables: dict[str, Any], units: int) -> None:
    assert cost(text, **variables) == units


def test_lists_inside_of_literals_and_values_count() -> None:
    ids = ", ".join(f'"{n}"' for n in range(150))
    assert cost(f"{{ getUserAccountsByIds(userAccountIds: [{ids}]) {{ id }} }}") == 2
    text = "query ($one: String!) { getUserAccountsByIds(userAccountIds: [$one]) { id } }"
    assert cost(text, one="a") == 1


def test_a_default_list_counts() -> None:
    ids = ", ".join(f'"{n}"' for n in range(250))
    text = f"query ($ids: [String!]! = [{ids}]) {{ getUserAccountsByIds(userAccountIds: $ids) {{ id }} }}"
    assert cost(text) == 3
    assert cost(text, ids=["a"]) == 1
