"""JSON that means one thing only: what tokens and key sets are read with.

The usual readers take the last of two members with one name, `NaN`, lone surrogates and any depth; each of these lets
two programs read different things in one signed text. Used by `compact`, `jwks`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, Final

__all__ = ["strict_object"]

# One pass: a text without an end is taken to the end, instead of being tried again from each of its quotes.
_TEXT: Final = re.compile(r'"(?:[^"\\]|\\.)*+"?+', re.DOTALL)
_NUMBER_LENGTH: Final = 32


def strict_object(data: bytes, *, depth: int) -> dict[str, Any]:
    """The JSON object (RFC 8259) in strict UTF-8 bytes, nested at most `depth` deep. Raises ValueError.

    The caller bounds the size. Refused besides what RFC 8259 refuses: a byte order mark, a member twice at any depth,
    NaN and Infinity, numbers that are longer than 32 characters or become infinite, lone surrogates.
    """
    text = data.decode("utf-8")
    _check_depth(text, depth)
    try:
        value = _decoder.decode(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")  # noqa: TRY004  # one error for all that is wrong
    if "\\" in text:
        _refuse_surrogates(value)
    return value


def _check_depth(text: str, most: int) -> None:
    """Before parsing, so that the parser's own stack is never asked."""
    depth = 0
    for character in _TEXT.sub("", text):
        if character in "[{":
            depth += 1
            if depth > most:
                raise ValueError("nested too deep")
        elif character in "]}":
            depth -= 1


def _members(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member twice")
    return members


def _integer(text: str) -> int:
    if len(text) > _NUMBER_LENGTH:
        raise ValueError("a number is too long")
    return int(text)


def _fraction(text: str) -> float:
    number = float(text) if len(text) <= _NUMBER_LENGTH else math.inf
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _refuse_surrogates(value: Any) -> None:
    if isinstance(value, str):
        value.encode("utf-8")  # UnicodeEncodeError is a ValueError
    elif isinstance(value, dict):
        for name, inner in value.items():
            name.encode("utf-8")
            _refuse_surrogates(inner)
    elif isinstance(value, list):
        for inner in value:
            _refuse_surrogates(inner)


_decoder: Final = json.JSONDecoder(
    object_pairs_hook=_members, parse_int=_integer, parse_float=_fraction, parse_constant=_constant
)
