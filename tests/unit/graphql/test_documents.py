"""Documents: parsed and validated once, limited before anything expensive is done with them."""

from __future__ import annotations

import contextlib

import pytest
from graphql import build_schema, get_introspection_query, parse
from hypothesis import given
from hypothesis import strategies as st

from kiseki.graphql import documents
from kiseki.graphql.documents import DocumentCache, InvalidDocument, UnparsableDocument
from kiseki.graphql.limits import DocumentLimits, LimitExceeded, check_document

SCHEMA = build_schema(
    """
    type Query { a(x: Int): A  b: String  list(ids: [String!]!): [A!]! }
    type Mutation { write(input: WriteInput!): A  other: A }
    input WriteInput { name: String! }
    type A { x: Int  a: A  b: A }
    """
)


def cache(introspection: bool = True, **limits: int) -> DocumentCache:
    return DocumentCache(SCHEMA, limits=DocumentLimits(**limits), introspection=introspection, capacity=3)


def test_a_text_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    real = parse

    def counting(text: str, **options: int) -> object:
        reads.append(text)
        return real(text, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(documents, "parse", counting)
    kept = cache()
    for text in ("{ b }", "{ b }", "{ a { x } }", "{ b }"):
        kept.get(text)
    assert reads == ["{ b }", "{ a { x } }"]


def test_the_cache_is_bounded_and_keeps_what_is_used() -> None:
    kept = cache()
    first = kept.get("{ b }")
    for number in range(3):
        kept.get(f"{{ a(x: {number}) {{ x }} }}")
        assert kept.get("{ b }") is first
    small = DocumentCache(SCHEMA, limits=DocumentLimits(), introspection=True, capacity_characters=10)
    assert small.get("{ b }") is small.get("{ b }")
    long = "{ b " + "#" * 20 + "\n}"
    assert small.get(long) is not small.get(long)


def test_operations_know_what_they_may_run() -> None:
    document = cache().get(
        'query Q { a { x } ...F } mutation M { write(input: {name: "n"}) { x } w2: other { x } } '
        "fragment F on Query { b ... on Query { again: b } }"
    )
    assert document.operation("Q").root_fields == ("a", "b", "b")
    assert not document.operation("Q").is_mutation
    assert document.operation("M").root_fields == ("write", "other")
    assert document.operation("M").is_mutation
    for name, code in ((None, "OPERATION_NOT_NAMED"), ("X", "UNKNOWN_OPERATION")):
        with pytest.raises(InvalidDocument) as refused:
            document.operation(name)
        assert refused.value.code == code


@pytest.mark.parametrize("text", ["", "{", "}{", '{ a(x: "\\ud800") { x } }', "\0", "{ a } extra ("])
def test_what_is_not_graphql_is_unparsable(text: str) -> None:
    with pytest.raises(UnparsableDocument):
        cache().get(text)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{ nothing }", "INVALID_DOCUMENT"),
        ("{ a }", "INVALID_DOCUMENT"),
        ("{ " + "b " * 1_100 + "}", "TOO_MANY_TOKENS"),
        ("{ " + "b " * 301 + "}", "TOO_MANY_FIELDS"),
        ("{ " + " ".join(f"b{i}: b" for i in range(31)) + " }", "TOO_MANY_ALIASES"),
        ("{ " + " b" * 21 + "}", "TOO_MANY_ROOT_FIELDS"),
        ("{ " + "a { " * 16 + "x" + " }" * 16 + " }", "TOO_DEEP"),
        ("{ " + "a { " * 400, "TOO_DEEP"),
        ("{ a(x: " + "[" * 400 + "]" * 400 + ") { x } }", "TOO_DEEP"),
        ("{ b " + "@skip(if: false) " * 31 + "}", "TOO_MANY_DIRECTIVES"),
        ("fragment F on Query { b }", "INVALID_DOCUMENT"),
        ("{ a(x: " + "9" * 5_000 + ") { x } }", "NUMBER_TOO_LONG"),
        ("query ($x: Int = " + "9" * 5_000 + ") { a(x: $x) { x } }", "NUMBER_TOO_LONG"),
        ("{ b } fragment F on A { " + "x " * 301 + "}", "TOO_MANY_FIELDS"),
        ("{ ...F } fragment F on Query { ...G } fragment G on Query { ...F }", "INVALID_DOCUMENT"),
        ("subscription { b }", "INVALID_DOCUMENT"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_code(text: str, code: str) -> None:
    with pytest.raises(InvalidDocument) as refused:
        cache().get(text)
    assert refused.value.code == code


def test_fragments_count_wherever_they_are_spread() -> None:
    levels = " ".join(f"fragment F{i} on A {{ a {{ ...F{i + 1} }} b {{ ...F{i + 1} }} }}" for i in range(12))
    text = "{ a { ...F0 } } " + levels + " fragment F12 on A { x }"
    with pytest.raises(LimitExceeded) as refused:
        check_document(parse(text), DocumentLimits())
    assert refused.value.code == "TOO_MANY_FIELDS"


def test_no_suggestion_is_made() -> None:
    with pytest.raises(InvalidDocument) as refused:
        cache().get("{ lisst { x } }")
    assert "mean" not in refused.value.errors[0].message
    assert "list" not in refused.value.errors[0].message.replace("lisst", "")


def test_introspection_can_be_closed() -> None:
    text = get_introspection_query()
    cache().get(text)
    for question in (text, "{ __schema { types { name } } }", '{ __type(name: "A") { name } }'):
        with pytest.raises(InvalidDocument):
            cache(introspection=False).get(question)
    cache(introspection=False).get("{ __typename }")


@given(st.text(alphabet='{}()[]:!$@#"\\ \nabx1.,=|&…太', max_size=200))
def test_any_text_is_answered_by_a_document_or_one_of_two_errors(text: str) -> None:
    with contextlib.suppress(UnparsableDocument, InvalidDocument):
        cache().get(text)
