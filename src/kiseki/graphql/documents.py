"""The document cache: a text is parsed, limited and validated once; then it costs a look-up."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import msgspec
from graphql import (
    DocumentNode,
    FieldNode,
    GraphQLError,
    GraphQLSchema,
    GraphQLSyntaxError,
    NoSchemaIntrospectionCustomRule,
    OperationDefinitionNode,
    OperationType,
    parse,
    specified_rules,
    validate,
)

from kiseki.graphql.cost import default_values
from kiseki.graphql.errors import told
from kiseki.graphql.limits import DocumentLimits, LimitExceeded, check_document, root_fields
from kiseki.kernel.errors import KisekiError

__all__ = ["Document", "DocumentCache", "InvalidDocument", "Operation", "UnparsableDocument"]

_MAX_ERRORS = 10


class UnparsableDocument(KisekiError):
    """The text is not a GraphQL document (400)."""

    code = "UNPARSABLE_DOCUMENT"


class InvalidDocument(KisekiError):
    """The document does not fit the schema or is over a limit (422)."""

    code = "INVALID_DOCUMENT"

    def __init__(self, message: str, errors: Sequence[GraphQLError] = (), code: str | None = None) -> None:
        super().__init__(message)
        self.errors = tuple(errors)
        if code is not None:
            self.code = code


class Operation(msgspec.Struct, frozen=True):
    """One operation of a document: whether it writes, and which root fields it may run."""

    node: OperationDefinitionNode
    is_mutation: bool
    root_fields: tuple[str, ...]
    field_nodes: tuple[FieldNode, ...]
    """The same as nodes."""
    defaults: dict[str, Any]
    """Values of variables that are not given."""


class Document(msgspec.Struct, frozen=True):
    """A valid document."""

    ast: DocumentNode
    operations: dict[str, Operation]
    tokens: int

    def operation(self, name: str | None) -> Operation:
        """The operation of this name, or the only one. Raises InvalidDocument."""
        if name is None:
            if len(self.operations) != 1:
                raise InvalidDocument("the document has several operations; name one", code="OPERATION_NOT_NAMED")
            return next(iter(self.operations.values()))
        found = self.operations.get(name)
        if found is None:
            raise InvalidDocument("the document has no operation of that name", code="UNKNOWN_OPERATION")
        return found


class DocumentCache:
    """Valid documents by text, least recently used first, bounded in number, in characters and in tokens, which is what
    a parsed document costs memory for.

    Documents that do not parse or validate are not kept: a flood of them must not push out the good ones, and the
    limits bound what each one costs.
    """

    def __init__(
        self,
        schema: GraphQLSchema,
        *,
        limits: DocumentLimits,
        introspection: bool,
        capacity: int = 1_000,
        capacity_characters: int = 4_000_000,
        capacity_tokens: int = 200_000,
    ) -> None:
        self._schema = schema
        self._limits = limits
        self._rules = [*specified_rules, *(() if introspection else (NoSchemaIntrospectionCustomRule,))]
        self._documents: OrderedDict[str, Document] = OrderedDict()
        self._capacity = capacity
        self._capacity_characters = capacity_characters
        self._capacity_tokens = capacity_tokens
        self._characters = 0
        self._tokens = 0

    def get(self, text: str) -> Document:
        """The document of a text. Raises UnparsableDocument, InvalidDocument."""
        document = self._documents.get(text)
        if document is not None:
            self._documents.move_to_end(text)
            return document
        document = self._read(text)
        self._documents[text] = document
        self._characters += len(text)
        self._tokens += document.tokens
        while (
            len(self._documents) > self._capacity
            or self._characters > self._capacity_characters
            or self._tokens > self._capacity_tokens
        ):
            dropped, old = self._documents.popitem(last=False)
            self._characters -= len(dropped)
            self._tokens -= old.tokens
        return document

    def _read(self, text: str) -> Document:
        try:
            ast = parse(text, max_lexical_tokens=self._limits.tokens, max_comments=self._limits.tokens)
        except GraphQLSyntaxError as problem:
            if "contains more than" in problem.message:
                raise InvalidDocument(
                    f"the document has more than {self._limits.tokens} tokens", code="TOO_MANY_TOKENS"
                ) from problem
            if "nested too deeply" in problem.message:
                raise InvalidDocument("the document is nested too deeply", code="TOO_DEEP") from problem
            raise UnparsableDocument(told(problem.message)) from problem
        try:
            check_document(ast, self._limits)
        except LimitExceeded as problem:
            raise InvalidDocument(str(problem), code=problem.code) from problem
        errors = validate(self._schema, ast, self._rules, max_errors=_MAX_ERRORS, hide_suggestions=True)
        if errors:
            raise InvalidDocument("the document does not fit the schema", errors)
        operations = {
            definition.name.value if definition.name else "": _operation(definition, ast)
            for definition in ast.definitions
            if isinstance(definition, OperationDefinitionNode)
        }
        if not operations:
            raise InvalidDocument("the document has no operation", code="NO_OPERATION")
        return Document(ast, operations, _tokens(ast))


def _operation(definition: OperationDefinitionNode, document: DocumentNode) -> Operation:
    fields = tuple(root_fields(definition, document))
    return Operation(
        definition,
        definition.operation is OperationType.MUTATION,
        tuple(field.name.value for field in fields),
        fields,
        default_values(definition),
    )


def _tokens(document: DocumentNode) -> int:
    count, token = 0, document.loc.start_token if document.loc is not None else None
    while token is not None:
        count, token = count + 1, token.next
    return count
