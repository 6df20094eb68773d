"""Limits on documents, checked before validation: validating a small hostile document can cost seconds.

Counts are of the document as it would run: a fragment counts wherever it is spread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec
from graphql import (
    DocumentNode,
    FieldNode,
    FloatValueNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    InlineFragmentNode,
    IntValueNode,
    OperationDefinitionNode,
    SelectionSetNode,
    Visitor,
    visit,
)

from kiseki.kernel.errors import KisekiError

__all__ = ["DocumentLimits", "LimitExceeded", "check_document", "root_fields"]

_NUMBER_CHARACTERS: Final = 40


class DocumentLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much a document may ask for."""

    tokens: int = 1_000
    depth: int = 16
    fields: int = 300
    aliases: int = 30
    directives: int = 30
    root_fields: int = 20


class LimitExceeded(KisekiError):
    """A document is over a limit. `code` names the limit."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _Cost(msgspec.Struct, frozen=True):
    fields: int
    depth: int


def check_document(document: DocumentNode, limits: DocumentLimits) -> None:
    """Raises LimitExceeded. Unknown fragments and fragment cycles are left to validation."""
    counter = _Counter()
    visit(document, counter)
    if counter.aliases > limits.aliases:
        raise LimitExceeded("TOO_MANY_ALIASES", f"the document has more than {limits.aliases} aliases")
    if counter.directives > limits.directives:
        raise LimitExceeded("TOO_MANY_DIRECTIVES", f"the document has more than {limits.directives} directives")
    fragments = _fragments(document)
    known: dict[str, _Cost] = {}
    operations = [d for d in document.definitions if isinstance(d, OperationDefinitionNode)]
    costs = [_cost(operation.selection_set, fragments, known, frozenset()) for operation in operations]
    # A fragment that nothing spreads is invalid, but finding that out is not free either.
    costs += [_spread(name, fragments, known, frozenset()) for name in fragments.keys() - known.keys()]
    if sum(cost.fields for cost in costs) > limits.fields:
        raise LimitExceeded("TOO_MANY_FIELDS", f"the document asks for more than {limits.fields} fields")
    if any(cost.depth > limits.depth for cost in costs):
        raise LimitExceeded("TOO_DEEP", f"the document is nested deeper than {limits.depth} levels")
    for operation in operations:
        if sum(1 for _ in root_fields(operation, document)) > limits.root_fields:
            raise LimitExceeded("TOO_MANY_ROOT_FIELDS", f"an operation has more than {limits.root_fields} root fields")


def root_fields(operation: OperationDefinitionNode, document: DocumentNode) -> Iterator[FieldNode]:
    """An operation's root fields, fragments included, whatever `@skip` and `@include` say."""
    fragments = _fragments(document)
    seen: set[str] = set()
    open_sets = [operation.selection_set]
    while open_sets:
        for selection in open_sets.pop().selections:
            if isinstance(selection, FieldNode):
                yield selection
            elif isinstance(selection, InlineFragmentNode):
                open_sets.append(selection.selection_set)
            elif isinstance(selection, FragmentSpreadNode) and selection.name.value not in seen:
                seen.add(selection.name.value)
                fragment = fragments.get(selection.name.value)
                if fragment is not None:
                    open_sets.append(fragment.selection_set)


class _Counter(Visitor):
    """Counts what is written, before fragments are spread."""

    def __init__(self) -> None:
        super().__init__()
        self.aliases = 0
        self.directives = 0

    def enter_field(self, node: FieldNode, *_: object) -> None:
        self.aliases += node.alias is not None

    def enter_directive(self, *_: object) -> None:
        self.directives += 1

    def enter_int_value(self, node: IntValueNode, *_: object) -> None:
        self._number(node.value)

    def enter_float_value(self, node: FloatValueNode, *_: object) -> None:
        self._number(node.value)

    def _number(self, digits: str) -> None:
        # No field holds such a number, and reading one costs more than its length.
        if len(digits) > _NUMBER_CHARACTERS:
            raise LimitExceeded("NUMBER_TOO_LONG", f"a number has more than {_NUMBER_CHARACTERS} characters")


def _fragments(document: DocumentNode) -> dict[str, FragmentDefinitionNode]:
    return {d.name.value: d for d in document.definitions if isinstance(d, FragmentDefinitionNode)}


def _cost(
    selections: SelectionSetNode,
    fragments: Mapping[str, FragmentDefinitionNode],
    known: dict[str, _Cost],
    inside: frozenset[str],
) -> _Cost:
    # Recursion is bounded: the parser refuses documents nested deeper than the interpreter allows, fragments
    # are entered once on a way down, and every fragment's cost is computed once.
    fields = 0
    depth = 0
    for selection in selections.selections:
        if isinstance(selection, FieldNode):
            inner = _Cost(0, 0)
            if selection.selection_set is not None:
                inner = _cost(selection.selection_set, fragments, known, inside)
            fields += 1 + inner.fields
            depth = max(depth, 1 + inner.depth)
            continue
        if isinstance(selection, InlineFragmentNode):
            inner = _cost(selection.selection_set, fragments, known, inside)
        elif isinstance(selection, FragmentSpreadNode):
            inner = _spread(selection.name.value, fragments, known, inside)
        fields += inner.fields
        depth = max(depth, inner.depth)
    return _Cost(fields, depth)


def _spread(
    name: str, fragments: Mapping[str, FragmentDefinitionNode], known: dict[str, _Cost], inside: frozenset[str]
) -> _Cost:
    if name in known:
        return known[name]
    fragment = fragments.get(name)
    if fragment is None or name in inside:
        return _Cost(0, 0)
    cost = _cost(fragment.selection_set, fragments, known, inside | {name})
    known[name] = cost
    return cost
