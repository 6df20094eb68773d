"""Value objects over text and whole numbers: parsed once, valid for ever after, immutable.

Text is checked by what is allowed, never by a list of forbidden words: people are called Drop, Null and O'Brien.
"""

from __future__ import annotations

import unicodedata
from typing import ClassVar, Self

__all__ = ["InvalidValue", "Text", "WholeNumber", "forbidden_character"]

# Explicit direction changes can make a text read as something else (Unicode TR 36, "Trojan Source").
_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_SPACES_AND_JOINERS = frozenset({"Zs", "Cf"})
_INVISIBLE = frozenset("\ufeff\ufff9\ufffa\ufffb\u00ad\u2060")


class InvalidValue(ValueError):
    """A value that its type does not accept. `code` is stable; the message never repeats the value."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def forbidden_character(value: str, *, multiline: bool = False) -> str | None:
    """The first code point that no text may hold, as `U+XXXX`, or None when all are fine.

    Refused: controls (also NUL), surrogates, private use, unassigned and non-characters, line and paragraph
    separators, bidirectional overrides, invisible format characters. Allowed: every script's letters, marks,
    numbers, punctuation, symbols and spaces, and the joiners that scripts need (U+200C, U+200D).
    """
    if value.isprintable():
        return None
    for character in value:
        if character.isprintable():
            continue
        if multiline and character in "\n\t":
            continue
        if unicodedata.category(character) in _SPACES_AND_JOINERS and not (
            character in _BIDI_CONTROLS or character in _INVISIBLE
        ):
            continue
        return f"U+{ord(character):04X}"
    return None


class Text(str):
    """A string with rules; subclass it: `class FirstName(Text, max_length=50)`.

    Constructing one checks it: normalised to Unicode NFC, not blank, at most `max_length` code points (and
    `max_bytes` bytes of UTF-8 where given), no forbidden character, then the subclass's own `check`.
    Raises InvalidValue (BLANK, TOO_SHORT, TOO_LONG, FORBIDDEN_CHARACTER, or a code of the subclass).
    """

    __slots__ = ()
    min_length: ClassVar[int] = 1
    max_length: ClassVar[int] = 1_000
    max_bytes: ClassVar[int | None] = None
    multiline: ClassVar[bool] = False

    def __init_subclass__(
        cls,
        *,
        max_length: int | None = None,
        min_length: int | None = None,
        max_bytes: int | None = None,
        multiline: bool | None = None,
    ) -> None:
        super().__init_subclass__()
        if max_length is not None:
            cls.max_length = max_length
        if min_length is not None:
            cls.min_length = min_length
        if max_bytes is not None:
            cls.max_bytes = max_bytes
        if multiline is not None:
            cls.multiline = multiline

    def __new__(cls, value: str) -> Self:
        if not value.isascii():
            # The length is bounded before the (super-linear in bad cases) normalisation.
            if len(value) > 4 * cls.max_length:
                raise _too_long(cls.max_length)
            problem = forbidden_character(value, multiline=cls.multiline)
            if problem is not None:
                raise _forbidden(problem)
            value = unicodedata.normalize("NFC", value)
        if len(value) > cls.max_length:
            raise _too_long(cls.max_length)
        if cls.max_bytes is not None and len(value.encode()) > cls.max_bytes:
            raise InvalidValue("TOO_LONG", f"must be at most {cls.max_bytes} bytes of UTF-8")
        problem = forbidden_character(value, multiline=cls.multiline)
        if problem is not None:
            raise _forbidden(problem)
        if cls.min_length and not value.strip():
            raise InvalidValue("BLANK", "must not be blank")
        if len(value) < cls.min_length:
            raise InvalidValue("TOO_SHORT", f"must be at least {cls.min_length} characters")
        cls.check(value)
        return super().__new__(cls, value)

    @classmethod
    def check(cls, value: str) -> None:
        """A subclass's own rule; raise InvalidValue to refuse. The value has passed all other rules."""

    @classmethod
    def trusted(cls, value: str) -> Self:
        """The value without checking: for text that passed when it was written. Rules may have become stricter
        since; what was once a fact stays readable."""
        return str.__new__(cls, value)


def _too_long(limit: int) -> InvalidValue:
    return InvalidValue("TOO_LONG", f"must be at most {limit} characters")


def _forbidden(character: str) -> InvalidValue:
    return InvalidValue("FORBIDDEN_CHARACTER", f"must not contain the character {character}")


class WholeNumber(int):
    """An integer with bounds; subclass it: `class Quantity(WholeNumber, minimum=1, maximum=1_000_000)`.

    The default bounds are those of GraphQL's Int (32 bit). Raises InvalidValue (OUT_OF_RANGE).
    """

    minimum: ClassVar[int] = -(2**31)
    maximum: ClassVar[int] = 2**31 - 1

    def __init_subclass__(cls, *, minimum: int | None = None, maximum: int | None = None) -> None:
        super().__init_subclass__()
        if minimum is not None:
            cls.minimum = minimum
        if maximum is not None:
            cls.maximum = maximum

    def __new__(cls, value: int) -> Self:
        if not cls.minimum <= value <= cls.maximum:
            raise InvalidValue("OUT_OF_RANGE", f"must be from {cls.minimum} to {cls.maximum}")
        return super().__new__(cls, value)

    @classmethod
    def trusted(cls, value: int) -> Self:
        """The value without checking: for numbers that passed when they were written."""
        return int.__new__(cls, value)
