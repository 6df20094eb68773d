"""How errors look on the wire: type, stable code, message, and for inputs one entry per field.

The wire contract: `extensions.type` is ValidationError, CommandError or QueryError; never a stack trace, SQL, a path, a
library's name or a suggestion.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from graphql import GraphQLError

from kiseki.command.errors import CommandConflict, IdempotencyInFlight, IdempotencyMismatch
from kiseki.graphql.context import Forbidden
from kiseki.journal.port import CommitTooLarge
from kiseki.kernel.decider import Rejected
from kiseki.kernel.errors import KisekiError, Unavailable
from kiseki.kernel.ports import SubjectErased
from kiseki.kernel.shapes import FieldError, Unstorable
from kiseki.query.waiting import Stale, StreamParked, TooManyWaiters

__all__ = ["InvalidInput", "error_body", "field_entry", "field_errors", "unavailable_for"]

_log = logging.getLogger(__name__)
_TOLD: Final = (
    Rejected,
    CommandConflict,
    CommitTooLarge,
    Forbidden,
    IdempotencyInFlight,
    IdempotencyMismatch,
    Stale,
    StreamParked,
    SubjectErased,
    TooManyWaiters,
    Unstorable,
)
"""Errors whose messages are meant for clients."""
_AWAY: Final = "something that is needed is not available now; nothing was acknowledged, try again"
_INTERNAL: Final = "something went wrong inside; the trace id finds it in the log"


_SUGGESTION: Final = re.compile(r"[ ,.]*\bdid you mean\b.*", re.IGNORECASE | re.DOTALL)
_LONGEST: Final = 200


def told(message: str) -> str:
    """What a library says of a document, without its suggestions, and no longer than 200 characters: it repeats names
    that the client sent, however long they are."""
    cut = _SUGGESTION.sub("", message)
    return cut if len(cut) <= _LONGEST else f"{cut[: _LONGEST - 3]}..."


class InvalidInput(KisekiError):
    """An input that is well typed but not acceptable, with everything that is wrong with it."""

    code = "INVALID_INPUT"

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__("the input is not acceptable")
        self.errors = tuple(errors)


def field_entry(error: FieldError) -> dict[str, Any]:
    """One field's error as it stands in `extensions.errors`."""
    return {"path": list(error.path), "code": error.code, "message": error.message}


def error_body(kind: str, code: str, message: str, trace_id: str, errors: Sequence[FieldError] = ()) -> dict[str, Any]:
    """One entry of GraphQL's `errors` for something found before execution."""
    extensions: dict[str, Any] = {"type": kind, "code": code, "traceId": trace_id}
    if errors:
        extensions["errors"] = [field_entry(error) for error in errors]
    return {"message": message, "extensions": extensions}


def field_errors(errors: Sequence[GraphQLError], kind: str, trace_id: str) -> list[dict[str, Any]]:
    """The `errors` of an executed document. `kind` is CommandError or QueryError."""
    return [_field_error(error, kind, trace_id) for error in errors]


def unavailable_for(errors: Sequence[GraphQLError]) -> int | None:
    """The longest `retry_after` (seconds) when every one of these errors is an Unavailable, else None."""
    causes = [error.original_error for error in errors]
    waits = [cause.retry_after for cause in causes if isinstance(cause, Unavailable)]
    return max(waits) if waits and len(waits) == len(causes) else None


def _field_error(error: GraphQLError, kind: str, trace_id: str) -> dict[str, Any]:
    cause = error.original_error
    if isinstance(cause, InvalidInput):
        body = error_body("ValidationError", cause.code, str(cause), trace_id, cause.errors)
    elif isinstance(cause, _TOLD):
        body = error_body(kind, cause.code, str(cause), trace_id)
    elif isinstance(cause, KisekiError) and cause.code != "INTERNAL":
        # The message is written for operators: it may name a file or a host.
        body = error_body(kind, cause.code, _AWAY if isinstance(cause, Unavailable) else _INTERNAL, trace_id)
        _log.warning("a field failed (trace id %s, path %s): %s", trace_id, error.path, cause)
    elif cause is None:
        # graphql-core's own word on a field: its messages can quote a value, so only the fact is passed on.
        body = error_body(kind, "INTERNAL", _INTERNAL, trace_id)
        _log.error("a field could not be completed (trace id %s, path %s)", trace_id, error.path)
    else:
        body = error_body(kind, "INTERNAL", _INTERNAL, trace_id)
        _log.error("a field failed (trace id %s, path %s)", trace_id, error.path, exc_info=cause)
    located: Mapping[str, Any] = {
        "message": body["message"],
        **({"path": list(error.path)} if error.path else {}),
        **({"locations": [loc.formatted for loc in error.locations]} if error.locations else {}),
        "extensions": body["extensions"],
    }
    return dict(located)
