"""What DynamoDB refuses, as errors of a journal. Used by the modules of the DynamoDB journal only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from kiseki.clients.dynamodb import ConditionFailed, DynamoDbRefused, DynamoDbUnavailable, TransactionCanceled
from kiseki.clients.errors import NotMigrated
from kiseki.journal.port import JournalUnavailable

__all__ = ["explained"]

_MISSING: Final = "ResourceNotFoundException"


@contextmanager
def explained() -> Iterator[None]:
    """Whatever DynamoDB raised inside becomes JournalUnavailable, or NotMigrated when a table is missing."""
    try:
        yield
    except DynamoDbUnavailable as problem:
        raise JournalUnavailable(str(problem), retry_after=problem.retry_after) from problem
    except DynamoDbRefused as problem:
        if problem.kind == _MISSING:
            raise NotMigrated(f"{problem}; run `kiseki migrate`") from problem
        raise JournalUnavailable(str(problem)) from problem
    except (ConditionFailed, TransactionCanceled) as problem:
        raise JournalUnavailable(str(problem)) from problem
