"""Value objects over text and whole numbers: parsed once, valid for ever after, immutable.

Text is checked by what is allowed, never by a list of forbidden words: people are called Drop, Null and O'Brien.
"""

from __future__ import annotations

import unicodedata
from typing import ClassVar, Self

__all__ = ["InvalidValue", "Text", "WholeNumber", "forbidden_character"]

# Of format characters (Cf) those that scripts are written with, and no others. Left out are explicit direction changes,
# which make a text read as something else (Unicode TR 36, "Trojan Source"), and what nobody sees and no script needs:
# zero width spaces, tags, invisible operators, annotations, byte order marks, soft hyphens.
_FORMAT_CHARACTERS = frozenset(
    "\u200c\u200d"  # joiners: Persian, the scripts of India, emoji
    "\u200e\u200f\u061c"  # implicit direction marks: Arabic and Hebrew beside punctuation
    "\u180e"  # Mongolian vowel separator
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"  # signs that are seen
) | {chr(point) for point in range(0x13430, 0x13440)}  # joiners of hieroglyphs
_VARIATION_SELECTORS = frozenset(
    chr(point)
    for low, high in ((0x180B, 0x180D), (0x180F, 0x180F), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF))
    for point in range(low, high + 1)
)
# Letters and symbols that show nothing: alone they are a blank text.
_FILLERS = frozenset("\u115f\u1160\u3164\uffa0\u2800")
_MARKS_AT_MOST = 8
"""In a row, joiners counted. The tallest stack in use has eight (Tibetan, HAKSHMALAWARAYAM); pointed Hebrew has five,
Burmese six; Unicode's own bound for streams, 30, leaves room to paint over the lines above and below."""


class InvalidValue(ValueError):
    """A value that its type does not accept. `code` is stable; the message never repeats the value."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def forbidden_character(value: str, *, multiline: bool = False) -> str | None:
    """The first code point that no text may hold, as `U+XXXX`, or None when all are fine.

    Refused: controls (also NUL), surrogates, private use, unassigned and non-characters, line and paragraph
    separators, bidirectional overrides, format characters that no script needs, a variation selector on another one.
    Allowed: every script's letters, marks, numbers, punctuation, symbols and spaces, and its joiners (U+200C, U+200D).
    """
    if value.isalnum() or (value.isascii() and value.isprintable()):
        return None
    selected = False
    for character in value:
        if character in _VARIATION_SELECTORS:
            if selected:
                return f"U+{ord(character):04X}"
            selected = True
            continue
        selected = False
        if character.isprintable() or character in _FORMAT_CHARACTERS or (multiline and character in "\n\t"):
            continue
        if unicodedata.category(character) != "Zs":
            return f"U+{ord(character):04X}"
    return None


def _check_marks(value: str) -> None:
    """Raises InvalidValue when marks pile up, or when there is nothing that they are on."""
    run = 0
    visible = False
    for character in value:
        category = unicodedata.category(character)
        if category[0] == "M" or character in _FORMAT_CHARACTERS:
            run += 1
            if run > _MARKS_AT_MOST:
                raise InvalidValue("TOO_MANY_MARKS", f"must not have more than {_MARKS_AT_MOST} marks on a character")
        else:
            run = 0
            visible = visible or (category[0] in "LNPS" and character not in _FILLERS)
    if not visible and value:
        raise InvalidValue("BLANK", "must not be blank")


class Text(str):
    """A string with rules; subclass it: `class FirstName(Text, max_length=50)`.

    Constructing one checks it: normalised to Unicode NFC, not blank, at most `max_length` code points (and
    `max_bytes` bytes of UTF-8 where given), no forbidden character, not more than eight marks in a row, then the
    subclass's own `check`. Raises InvalidValue (BLANK, TOO_SHORT, TOO_LONG, FORBIDDEN_CHARACTER, TOO_MANY_MARKS, or a
    code of the subclass).
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
        if not value.isascii() and not (value.isalnum() and _FILLERS.isdisjoint(value)):
            _check_marks(value)
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
