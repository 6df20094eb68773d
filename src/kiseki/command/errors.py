"""What can go wrong with a command besides a rejection; each has its code and its place in the wire contract."""

from __future__ import annotations

from kiseki.kernel.errors import KisekiError

__all__ = ["CommandConflict", "DecisionFailed", "IdempotencyInFlight", "IdempotencyMismatch"]


class CommandConflict(KisekiError):
    """Others wrote to the stream faster than this command could be decided again, several times over."""

    code = "CONFLICT"


class IdempotencyMismatch(KisekiError):
    """The idempotency key was used before with another command (422)."""

    code = "IDEMPOTENCY_KEY_REUSED"


class IdempotencyInFlight(KisekiError):
    """A command with this idempotency key is being handled now (409)."""

    code = "IDEMPOTENCY_KEY_IN_FLIGHT"


class DecisionFailed(KisekiError):
    """A decider's function raised something that is not a rejection. Nothing was written."""

    code = "INTERNAL"
