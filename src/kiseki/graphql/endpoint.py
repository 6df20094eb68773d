"""`GraphQLEndpoint`: from the body of an authenticated request to its answer. A plain call, without a web framework."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal, TypeAlias

import msgspec
from graphql import ExecutionResult, GraphQLSchema, execute

from kiseki.command.errors import IdempotencyInFlight, IdempotencyMismatch
from kiseki.command.handler import CommandHandler
from kiseki.graphql.answers import Answer, graphql_answer, request_problem
from kiseki.graphql.context import QueryRunner, RequestContext
from kiseki.graphql.cost import cost_of
from kiseki.graphql.documents import Document, DocumentCache, InvalidDocument, Operation, UnparsableDocument
from kiseki.graphql.errors import error_body, field_errors, told, unavailable_for
from kiseki.graphql.variables import check_variables
from kiseki.kernel.ports import AccessPolicy, AuditEvent, Auditor, Principal
from kiseki.query.consistency import ConsistencyToken, InvalidToken

__all__ = ["Charge", "GraphQLEndpoint", "GraphQLRequest"]

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_OPEN_FIELDS: Final = frozenset({"__typename", "__schema", "__type", "health"})
"""Root fields without data; whether introspection is allowed at all is the document cache's setting."""


Charge: TypeAlias = Callable[[int], Awaitable[Answer | None]]


class GraphQLRequest(msgspec.Struct, frozen=True, kw_only=True):
    """An authenticated request whose media types and size were accepted."""

    body: bytes
    principal: Principal
    trace_id: str
    correlation_id: str
    address: str | None = None
    """The client's address, for the audit log."""
    charge: Charge | None = None
    """Takes further units of the rate limit; the refusal when there are not that many."""
    graphql_response: bool = False
    """Whether the client asked for `application/graphql-response+json`."""
    idempotency_key: str | None = None
    consistency_token: str | None = None


class _Body(msgspec.Struct):
    query: str
    variables: dict[str, Any] | None = None
    operation_name: str | None = msgspec.field(default=None, name="operationName")


class _Refused(Exception):  # carries an answer, is not an error
    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class GraphQLEndpoint:
    """Serves one schema. Give it a command handler (command API) or a query runner (query API)."""

    def __init__(
        self,
        *,
        schema: GraphQLSchema,
        kind: Literal["CommandError", "QueryError"],
        documents: DocumentCache,
        access: AccessPolicy,
        auditor: Auditor,
        commands: CommandHandler | None = None,
        queries: QueryRunner | None = None,
    ) -> None:
        self.schema = schema
        self._kind = kind
        self._documents = documents
        self._access = access
        self._auditor = auditor
        self._api = "command" if kind == "CommandError" else "query"
        self._commands = commands
        self._queries = queries
        self._decode = msgspec.json.Decoder(_Body).decode

    async def handle(self, request: GraphQLRequest) -> Answer:
        """The answer, as the wire contract has it. Never raises for anything a client did."""
        try:
            body = self._body(request)
            document = self._document(request, body)
            operation = self._operation(request, document, body)
            self._check_access(request, operation)
            context = self._context(request, operation)
            variables = body.variables or {}
            errors = check_variables(self.schema, operation.node, variables)
            if errors:
                raise _Refused(self._problem(request, 422, "INVALID_VARIABLES", "variables do not fit", fields=errors))
            await self._charge(request, operation, variables)
        except _Refused as refused:
            return refused.answer
        result = execute(
            self.schema,
            document.ast,
            context_value=context,
            variable_values=variables,
            operation_name=body.operation_name,
            hide_suggestions=True,
        )
        if isinstance(result, Awaitable):
            result = await result
        return self._answer(request, context, operation, result)

    def _body(self, request: GraphQLRequest) -> _Body:
        try:
            return self._decode(request.body)
        except msgspec.ValidationError as problem:
            raise _Refused(
                self._problem(
                    request,
                    400,
                    "MALFORMED_REQUEST",
                    "the body must be a JSON object with a string `query`, and perhaps `variables`",
                )
            ) from problem
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            raise _Refused(self._problem(request, 400, "UNPARSABLE_JSON", "the body is not JSON in UTF-8")) from problem
        except RecursionError as problem:
            raise _Refused(self._problem(request, 400, "UNPARSABLE_JSON", "the body is nested too deeply")) from problem

    def _document(self, request: GraphQLRequest, body: _Body) -> Document:
        try:
            return self._documents.get(body.query)
        except UnparsableDocument as problem:
            raise _Refused(self._problem(request, 400, problem.code, str(problem))) from problem
        except InvalidDocument as problem:
            raise _Refused(self._invalid(request, problem)) from problem

    def _operation(self, request: GraphQLRequest, document: Document, body: _Body) -> Operation:
        try:
            return document.operation(body.operation_name)
        except InvalidDocument as problem:
            raise _Refused(self._invalid(request, problem)) from problem

    def _check_access(self, request: GraphQLRequest, operation: Operation) -> None:
        for name in operation.root_fields:
            if name not in _OPEN_FIELDS and not self._access.allows(request.principal, name):
                self._auditor.note(self._denied(request, operation=name, code="ROLES"))
                raise _Refused(
                    self._problem(
                        request,
                        403,
                        "FORBIDDEN",
                        f"your roles do not allow {name}",
                        kind=self._kind,
                        headers=((b"www-authenticate", b'Bearer realm="kiseki", error="insufficient_scope"'),),
                    )
                )

    async def _charge(self, request: GraphQLRequest, operation: Operation, variables: Mapping[str, Any]) -> None:
        """Takes what the document costs beyond the unit that every request has paid."""
        if request.charge is None:
            return
        further = cost_of(operation.field_nodes, {**operation.defaults, **variables}) - 1
        if further > 0:
            refusal = await request.charge(further)
            if refusal is not None:
                raise _Refused(refusal)

    def _denied(self, request: GraphQLRequest, **about: Any) -> AuditEvent:
        who = request.principal
        return AuditEvent(
            kind="access.denied",
            outcome="refused",
            actor=who.actor,
            issuer=who.issuer,
            subject=who.subject,
            address=request.address,
            api=self._api,
            trace_id=request.trace_id,
            **about,
        )

    def _context(self, request: GraphQLRequest, operation: Operation) -> RequestContext:
        key = request.idempotency_key
        if key is not None:
            if not _KEY.fullmatch(key):
                raise _Refused(
                    self._problem(
                        request, 400, "INVALID_IDEMPOTENCY_KEY", "Idempotency-Key is 1 to 255 visible ASCII characters"
                    )
                )
            if operation.is_mutation and len(operation.root_fields) > 1:
                raise _Refused(
                    self._problem(
                        request,
                        422,
                        "IDEMPOTENCY_KEY_SEVERAL_FIELDS",
                        "a request with an Idempotency-Key has one mutation field",
                    )
                )
        token = None
        if request.consistency_token is not None:
            try:
                token = ConsistencyToken.parse(request.consistency_token)
            except InvalidToken as problem:
                raise _Refused(
                    self._problem(
                        request, 400, problem.code, "Kiseki-Consistency-Token is not one that this service gave"
                    )
                ) from problem
        return RequestContext(
            principal=request.principal,
            access=self._access,
            auditor=self._auditor,
            denied=self._denied(request),
            correlation_id=request.correlation_id,
            token=token,
            idempotency_key=key,
            commands=self._commands,
            queries=self._queries,
        )

    def _answer(
        self, request: GraphQLRequest, context: RequestContext, operation: Operation, result: ExecutionResult
    ) -> Answer:
        body: dict[str, Any] = {"data": result.data}
        headers: list[tuple[bytes, bytes]] = []
        status = 200
        if result.errors:
            for error in result.errors:
                if isinstance(error.original_error, IdempotencyMismatch | IdempotencyInFlight):
                    return self._key_problem(request, error.original_error)
            body["errors"] = field_errors(result.errors, self._kind, request.trace_id)
            retry_after = unavailable_for(result.errors)
            if retry_after is not None and not any((result.data or {}).values()):
                status = 503
                headers.append((b"retry-after", str(retry_after).encode()))
        if context.wrote and context.token is not None:
            token = context.token.encode()
            body["extensions"] = {"consistencyToken": token}
            headers.append((b"kiseki-consistency-token", token.encode()))
        return graphql_answer(status, body, graphql_response=request.graphql_response, headers=headers)

    def _key_problem(self, request: GraphQLRequest, cause: IdempotencyMismatch | IdempotencyInFlight) -> Answer:
        if isinstance(cause, IdempotencyInFlight):
            return self._problem(
                request, 409, cause.code, str(cause), kind=self._kind, headers=((b"retry-after", b"1"),)
            )
        return self._problem(request, 422, cause.code, str(cause), kind=self._kind)

    def _invalid(self, request: GraphQLRequest, invalid: InvalidDocument) -> Answer:
        errors = [
            {
                **error_body("ValidationError", invalid.code, told(error.message), request.trace_id),
                **({"locations": [location.formatted for location in error.locations]} if error.locations else {}),
            }
            for error in invalid.errors
        ]
        return request_problem(
            422,
            invalid.code,
            str(invalid),
            request.trace_id,
            graphql_response=request.graphql_response,
            errors=errors,
        )

    def _problem(self, request: GraphQLRequest, status: int, code: str, detail: str, **more: Any) -> Answer:
        return request_problem(
            status, code, detail, request.trace_id, graphql_response=request.graphql_response, **more
        )
