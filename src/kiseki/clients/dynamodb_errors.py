"""What DynamoDB can answer instead of a result, as errors; and which of those answers are worth another try.

Used by the DynamoDB client and by those who call it. Messages name the operation and the table, never a key or value.
https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Programming.Errors.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from kiseki.kernel.errors import KisekiError, Unavailable

__all__ = [
    "CancellationReason",
    "ConditionFailed",
    "DynamoDbRefused",
    "DynamoDbUnavailable",
    "OutOfTime",
    "Passing",
    "TransactionCanceled",
    "failure",
    "target_of",
]

_THROTTLED: Final = frozenset(
    {
        "ProvisionedThroughputExceededException",
        "ThrottlingException",
        "RequestLimitExceeded",
        "ThrottledException",
        "LimitExceededException",
    }
)
_CONFLICTS: Final = frozenset(
    {"TransactionConflictException", "TransactionInProgressException", "ReplicatedWriteConflictException"}
)
_CREDENTIALS: Final = frozenset(
    {
        "ExpiredTokenException",
        "ExpiredToken",
        "UnrecognizedClientException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "IncompleteSignature",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
    }
)
_REASONS_THAT_PASS: Final = frozenset({"TransactionConflict", "ProvisionedThroughputExceeded", "ThrottlingError"})
_ADVICE: Final = {
    "AccessDeniedException": "allow the role this operation on the table",
    "ResourceNotFoundException": "there is no such table or stream in this account and region: make it",
    "ResourceInUseException": "the table is being changed, or is there already",
    "ValidationException": "DynamoDB does not take the request",
    "ItemCollectionSizeLimitExceededException": "the items of one key are more than a local index may hold",
    "IdempotentParameterMismatchException": "the token of the transaction was used for another one",
    "TrimmedDataAccessException": "the records are older than the stream keeps them",
    "ExpiredIteratorException": "the iterator is too old: get another",
}


class DynamoDbUnavailable(Unavailable):
    """DynamoDB can't be used now: network, time, throttling, its own failure, or credentials. A write may have happened
    or not; the same call again is safe when its condition says so."""

    code = "DYNAMODB_UNAVAILABLE"


class DynamoDbRefused(KisekiError):
    """DynamoDB refuses the request, and would again."""

    code = "DYNAMODB_REFUSED"

    def __init__(self, message: str, *, kind: str, detail: str = "") -> None:
        """`kind` is the short name of the exception, `detail` DynamoDB's own words: those may repeat a value."""
        super().__init__(message)
        self.kind = kind
        self.detail = detail


class ConditionFailed(KisekiError):
    """The condition of a write did not hold; nothing was written."""

    code = "DYNAMODB_CONDITION"

    def __init__(self, message: str, *, item: dict[str, Any] | None) -> None:
        """`item` is the one that is there, when the request asked for it (ALL_OLD) and there is one."""
        super().__init__(message)
        self.item = item


class CancellationReason(msgspec.Struct, frozen=True):
    """Why one action of a transaction did not happen; the code is `None` when it was not its fault."""

    code: str
    item: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"CancellationReason({self.code!r})"


class TransactionCanceled(KisekiError):
    """Nothing of the transaction was written; one reason for each of its actions, in their order."""

    code = "DYNAMODB_CANCELED"

    def __init__(self, message: str, *, reasons: tuple[CancellationReason, ...]) -> None:
        super().__init__(message)
        self.reasons = reasons


class Passing(Exception):
    """One attempt failed and another may not. Never leaves the client."""

    def __init__(self, why: str, *, is_credentials: bool = False) -> None:
        """`why` in short. `is_credentials`: others are needed."""
        super().__init__(why)
        self.is_credentials = is_credentials


class OutOfTime(Passing):
    """The deadline came before anything could be learned of DynamoDB."""


def target_of(operation: str, request: Mapping[str, Any]) -> str:
    """The operation and its tables, for messages."""
    names: set[str] = {str(request["TableName"])} if "TableName" in request else set()
    names.update(request.get("RequestItems", ()))
    for action in request.get("TransactItems", ()):
        names.update(each["TableName"] for each in action.values())
    return f"{operation} on {', '.join(sorted(names))}" if names else operation


def failure(status: int, answer: Mapping[str, Any], *, target: str) -> Passing | KisekiError:
    """What an answer other than 200 means. `target`: as `target_of` gives it."""
    kind = str(answer.get("__type", "")).rpartition("#")[2] or f"HTTP {status}"
    if kind in _THROTTLED or kind in _CONFLICTS:
        return Passing(kind)
    if kind in _CREDENTIALS:
        return Passing(
            f"the credentials are refused ({kind}): they ended, are wrong, or the clock here is", is_credentials=True
        )
    if kind == "ConditionalCheckFailedException":
        return ConditionFailed(f"{target}: the condition does not hold", item=answer.get("Item"))
    if kind == "TransactionCanceledException":
        return _canceled(answer, target)
    if status >= 500 or status == 429:
        return Passing(kind)
    detail = str(answer.get("message", answer.get("Message", "")))
    advice = _ADVICE.get(kind, "DynamoDB refuses the request")
    return DynamoDbRefused(f"{target}: {kind}: {advice}", kind=kind, detail=detail)


def _canceled(answer: Mapping[str, Any], target: str) -> Passing | TransactionCanceled:
    reasons = tuple(
        CancellationReason(str(each.get("Code") or "None"), each.get("Item"))
        for each in answer.get("CancellationReasons", ())
    )
    codes = {each.code for each in reasons} - {"None"}
    summary = ", ".join(sorted(codes)) or "no reason given"
    if codes and codes <= _REASONS_THAT_PASS:
        return Passing(summary)
    return TransactionCanceled(f"{target}: the transaction was canceled ({summary})", reasons=reasons)
