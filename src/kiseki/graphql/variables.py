"""Checking variables against an operation's declarations, with one error for each field that does not fit.

graphql-core checks them again when it executes; this check exists for errors with codes and paths, that never
quote a value (it may be personal data).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphql import (
    GraphQLEnumType,
    GraphQLError,
    GraphQLInputObjectType,
    GraphQLInputType,
    GraphQLList,
    GraphQLNonNull,
    GraphQLScalarType,
    GraphQLSchema,
    OperationDefinitionNode,
    Undefined,
    type_from_ast,
)

from kiseki.kernel.shapes import FieldError, Path

__all__ = ["check_variables"]

_MAX_ERRORS = 50
_EXPECTED = {"String": "a string", "Int": "a whole number of 32 bits", "Float": "a number", "Boolean": "true or false"}


def check_variables(
    schema: GraphQLSchema, operation: OperationDefinitionNode, given: Mapping[str, Any]
) -> list[FieldError]:
    """What does not fit, at most 50 errors."""
    errors: list[FieldError] = []
    for definition in operation.variable_definitions or ():
        name = definition.variable.name.value
        declared = type_from_ast(schema, definition.type)
        if name in given:
            _check(declared, given[name], (name,), errors)
        elif isinstance(declared, GraphQLNonNull) and definition.default_value is None:
            errors.append(FieldError((name,), "REQUIRED", "is required"))
    return errors[:_MAX_ERRORS]


def _check(declared: GraphQLInputType | Any, value: Any, path: Path, errors: list[FieldError]) -> None:
    if len(errors) >= _MAX_ERRORS:
        return
    if isinstance(declared, GraphQLNonNull):
        if value is None:
            errors.append(FieldError(path, "REQUIRED", "is required"))
            return
        declared = declared.of_type
    if value is None:
        return
    if isinstance(declared, GraphQLList):
        items = value if isinstance(value, list) else [value]
        for index, item in enumerate(items):
            _check(declared.of_type, item, (*path, index), errors)
    elif isinstance(declared, GraphQLInputObjectType):
        _check_object(declared, value, path, errors)
    elif isinstance(declared, GraphQLScalarType | GraphQLEnumType):
        try:
            accepted = declared.parse_value(value) is not Undefined
        except GraphQLError:
            accepted = False
        if not accepted:
            expected = _EXPECTED.get(declared.name, f"a {declared.name}")
            errors.append(FieldError(path, "WRONG_TYPE", f"must be {expected}"))


def _check_object(declared: GraphQLInputObjectType, value: Any, path: Path, errors: list[FieldError]) -> None:
    if not isinstance(value, dict):
        errors.append(FieldError(path, "WRONG_TYPE", "must be an object"))
        return
    for name, field in declared.fields.items():
        if name in value:
            _check(field.type, value[name], (*path, name), errors)
        elif isinstance(field.type, GraphQLNonNull) and field.default_value is Undefined:
            errors.append(FieldError((*path, name), "REQUIRED", "is required"))
    for name in value:
        if name not in declared.fields:
            errors.append(FieldError((*path, str(name)[:100]), "UNKNOWN_FIELD", "is not a field of this input"))
