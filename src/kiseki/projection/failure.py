"""What may be kept of an exception: its class and the innermost place in code. Messages may hold personal data."""

from __future__ import annotations

import msgspec

__all__ = ["Failure", "place_of"]


class Failure(msgspec.Struct, frozen=True):
    """Why an event could not be applied: a stable code, and a detail that is safe to store and show."""

    code: str
    detail: str


def place_of(problem: BaseException) -> str:
    """An exception's class, and module and line of the innermost frame it came from: `KeyError at shop.stock:41`."""
    innermost = problem.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    name = type(problem).__qualname__
    if innermost is None:
        return name
    module = innermost.tb_frame.f_globals.get("__name__", "?")
    return f"{name} at {module}:{innermost.tb_lineno}"
