"""`page_document`: the document that asks one query for a page of everything it has. Used by the admin pages."""

from __future__ import annotations

from graphql import GraphQLObjectType, GraphQLSchema, get_named_type
from graphql.type import GraphQLOutputType

__all__ = ["page_document"]


def page_document(schema: GraphQLSchema, query: str) -> str:
    """A document with the variables `first` and `after`; the answer's data has the page under `page`."""
    root = schema.query_type
    assert root is not None  # noqa: S101  # a query schema has one
    field = root.fields[query]
    given = ", ".join(f"${name}: {argument.type}" for name, argument in sorted(field.args.items()))
    passed = ", ".join(f"{name}: ${name}" for name in sorted(field.args))
    return f"query ({given}) {{ page: {query}({passed}){_selection(field.type)} }}"


def _selection(of: GraphQLOutputType) -> str:
    named = get_named_type(of)
    if not isinstance(named, GraphQLObjectType):
        return ""
    return " { " + " ".join(f"{name}{_selection(field.type)}" for name, field in named.fields.items()) + " }"
