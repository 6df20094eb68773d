"""The two schemas of an application: mutations from its commands, queries from its queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from graphql import (
    GraphQLArgument,
    GraphQLField,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLResolveInfo,
    GraphQLSchema,
    GraphQLString,
    print_schema,
    validate_schema,
)

from kiseki.application.context import Application
from kiseki.graphql.context import RequestContext
from kiseki.graphql.errors import InvalidInput
from kiseki.graphql.types import TypeMap
from kiseki.kernel.command import Command
from kiseki.kernel.errors import DefinitionError
from kiseki.kernel.shapes import FAILED, FieldError, RecordShape, shape_of
from kiseki.query.query import Query

__all__ = ["command_schema", "query_schema", "sdl"]


def command_schema(application: Application) -> GraphQLSchema:
    """One mutation field for each command: `createUserAccount(input: CreateUserAccountInput!) {id}`.

    Raises DefinitionError for what GraphQL can't express.
    """
    types = TypeMap()
    fields = {name: _mutation(name, command, types) for name, command in application.commands.items()}
    # GraphQL wants a query type. The command API has nothing to ask, so it says what it is.
    query = GraphQLObjectType(
        "Query",
        {
            "health": GraphQLField(
                GraphQLNonNull(GraphQLString), resolve=lambda *_: "ok", description="Answers ok when the API does."
            )
        },
    )
    return _checked(GraphQLSchema(query=query, mutation=GraphQLObjectType("Mutation", fields)))


def query_schema(application: Application) -> GraphQLSchema:
    """One query field for each query of the application. Raises DefinitionError for what GraphQL can't express."""
    if not application.queries:
        raise DefinitionError("the application has no query, so there is no query API to serve")
    types = TypeMap()
    fields = {name: _query(query, types) for name, query in application.queries.items()}
    return _checked(GraphQLSchema(query=GraphQLObjectType("Query", fields)))


def sdl(schema: GraphQLSchema) -> str:
    """The schema as text."""
    return print_schema(schema) + "\n"


def _mutation(name: str, command: type[Command], types: TypeMap) -> GraphQLField:
    shape = RecordShape(command)
    payload = GraphQLObjectType(
        f"{command.__name__}Payload",
        {"id": GraphQLField(GraphQLNonNull(GraphQLString), resolve=lambda result, _info: result.stream_id)},
    )

    async def resolve(_root: Any, info: GraphQLResolveInfo[Any], **arguments: Any) -> Any:
        context: RequestContext = info.context
        errors: list[FieldError] = []
        typed = shape.parse(arguments.get("input", {}), ("input",), errors)
        if typed is FAILED:
            raise InvalidInput(errors)
        return await context.send(name, typed)

    arguments = {}
    if shape.fields:
        arguments["input"] = GraphQLArgument(types.input(shape, command.__name__))
    return GraphQLField(payload, args=arguments, resolve=resolve, description=_doc(command))


def _query(query: Query, types: TypeMap) -> GraphQLField:
    shape = RecordShape(query.arguments_type)
    result = shape_of(query.result_type, f"the result of query {query.name}")

    async def resolve(_root: Any, info: GraphQLResolveInfo[Any], **arguments: Any) -> Any:
        context: RequestContext = info.context
        errors: list[FieldError] = []
        typed = shape.parse(arguments, (), errors)
        if typed is FAILED:
            raise InvalidInput(errors)
        return await context.ask(query, typed)

    arguments = {
        field.wire_name: GraphQLArgument(types.input_field(field, query.arguments_type.__name__))
        for field in shape.fields
    }
    return GraphQLField(
        types.output(result, f"query {query.name}"), args=arguments, resolve=resolve, description=_doc(query.handler)
    )


def _checked(schema: GraphQLSchema) -> GraphQLSchema:
    problems = validate_schema(schema)
    if problems:
        raise DefinitionError(f"the application's GraphQL schema is not valid: {problems[0].message}")
    return schema


def _doc(described: Callable[..., Any] | type) -> str | None:
    text = getattr(described, "__doc__", None)
    if not text or text.startswith(f"{described.__name__}("):
        return None
    return str(text).strip().splitlines()[0]
