"""What a document costs in units of the rate limit: one for each root field, aliases counted, and more for large pages.

Used by the endpoint, after the document and its variables were found valid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from graphql import (
    ArgumentNode,
    FieldNode,
    IntValueNode,
    ListValueNode,
    ObjectValueNode,
    OperationDefinitionNode,
    ValueNode,
    VariableNode,
    value_from_ast_untyped,
)

__all__ = ["ITEMS_FOR_ONE", "cost_of", "default_values"]

ITEMS_FOR_ONE: Final = 100
"""Items that are asked for in one field without costing more."""
_PAGE: Final = "first"


def default_values(operation: OperationDefinitionNode) -> dict[str, Any]:
    """What variables are when they are not given, by name, for those that have a default."""
    return {
        definition.variable.name.value: value_from_ast_untyped(definition.default_value)
        for definition in operation.variable_definitions or ()
        if definition.default_value is not None
    }


def cost_of(fields: Iterable[FieldNode], variables: Mapping[str, Any]) -> int:
    """The units of an operation's root fields: of each one, and one more for every further hundred items that it asks
    for, by a list in its arguments or by the size of a page. `variables` are the given ones over the defaults."""
    # Counted for every request, so plain loops: generators would cost several times as much.
    units = 0
    for field in fields:
        items = _items(field, variables)
        units += 1 + (items - 1) // ITEMS_FOR_ONE if items > 1 else 1
    return units


def _items(field: FieldNode, variables: Mapping[str, Any]) -> int:
    most = 0
    for argument in field.arguments or ():
        most = max(most, _asked(argument, variables))
    return most


def _asked(argument: ArgumentNode, variables: Mapping[str, Any]) -> int:
    value: Any = argument.value
    if isinstance(value, VariableNode):
        given = variables.get(value.name.value)
        if argument.name.value == _PAGE:
            # JSON may write a whole number as 1000.0 too.
            return int(given) if isinstance(given, int | float) and not isinstance(given, bool) else 0
        return _length(given)
    if argument.name.value == _PAGE:
        return int(value.value) if isinstance(value, IntValueNode) else 0
    return _literal_length(value, variables)


def _length(given: Any) -> int:
    """The items of all lists in a value."""
    if isinstance(given, dict):
        items, inside = 0, iter(given.values())
    elif isinstance(given, list):
        items, inside = len(given), iter(given)
    else:
        return 0
    for item in inside:
        if isinstance(item, (list, dict)):
            items += _length(item)
    return items


def _literal_length(value: ValueNode, variables: Mapping[str, Any]) -> int:
    if isinstance(value, VariableNode):
        return _length(variables.get(value.name.value))
    if isinstance(value, ListValueNode):
        return len(value.values) + sum(_literal_length(item, variables) for item in value.values)
    if isinstance(value, ObjectValueNode):
        return sum(_literal_length(field.value, variables) for field in value.fields)
    return 0
