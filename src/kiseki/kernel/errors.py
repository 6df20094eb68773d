"""The errors every room shares: each has a stable code and one clear line for the person who meets it."""

from __future__ import annotations

__all__ = ["DefinitionError", "KisekiError", "Unavailable"]


class KisekiError(Exception):
    """Base of all errors kiseki raises on purpose.

    `code` is stable and upper case; the message is one line that says what happened, where, and what to do.
    Messages never carry personal data or secrets, so they may be logged and shown.
    """

    code: str = "INTERNAL"


class DefinitionError(KisekiError):
    """A context, decider, event, projection or query is defined in a way that can't work. Raised at composition."""

    code = "DEFINITION"


class Unavailable(KisekiError):
    """A store that is needed can't be used now; the same call may succeed later.

    `retry_after` is in seconds and becomes the `Retry-After` header.
    """

    code = "UNAVAILABLE"

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after
