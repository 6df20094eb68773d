"""What text may hold, character by character: every letter, mark, number and symbol of Unicode, and nothing else."""

# ruff: noqa: E501  # a value is one line, or one of many on it

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiseki import InvalidValue, Text
from kiseki.kernel.text import forbidden_character


class Name(Text, max_length=50):
    pass


class Note(Text, max_length=50, multiline=True):
    pass


EVERY = [chr(point) for point in range(sys.maxunicode + 1)]
FILLERS = set("\u115f\u1160\u3164\uffa0\u2800")
FORMAT = {character for character in EVERY if unicodedata.category(character) == "Cf"}
NEEDED = set("\u200c\u200d\u200e\u200f\u061c\u180e")


def code(value: str, kind: type[Text] = Name) -> str | None:
    try:
        kind(value)
    except InvalidValue as refused:
        return refused.code
    return None


def test_every_letter_and_number_of_every_script_is_a_name() -> None:
    refused = [
        f"U+{ord(character):04X}"
        for character in EVERY
        if unicodedata.category(character)[0] in "LN" and character not in FILLERS and code(character) is not None
    ]
    assert refused == []


def test_every_mark_passes_on_a_letter_and_none_alone() -> None:
    marks = [character for character in EVERY if unicodedata.category(character)[0] == "M"]
    assert len(marks) > 2_000
    assert [f"U+{ord(mark):04X}" for mark in marks if code(f"a{mark}") is not None] == []
    assert {code(mark) for mark in marks} == {"BLANK"}


def test_every_symbol_and_punctuation_passes() -> None:
    assert [c for c in EVERY if unicodedata.category(c)[0] in "PS" and c not in FILLERS and code(c) is not None] == []


def test_controls_surrogates_private_use_and_unassigned_are_refused_wherever_they_stand() -> None:
    bad = [c for c in EVERY if unicodedata.category(c) in ("Cc", "Cs", "Co", "Cn", "Zl", "Zp")]
    assert len(bad) > 900_000
    for character in bad[:: max(1, len(bad) // 20_000)] + bad[:3_000]:
        for value in (character, f"a{character}", f"太{character}b"):
            assert forbidden_character(value) == f"U+{ord(character):04X}"


def test_format_characters_pass_only_when_a_script_is_written_with_them() -> None:
    passing = {character for character in FORMAT if code(f"a{character}b") is None}
    assert passing >= NEEDED
    seen = passing - NEEDED
    assert all("SIGN" in unicodedata.name(c) or "MARK" in unicodedata.name(c) or 0x13430 <= ord(c) < 0x13440
               or unicodedata.name(c) in ("ARABIC END OF AYAH", "ARABIC DISPUTED END OF AYAH") for c in seen)  # fmt: skip
    for (
        character
    ) in "\u200b\u2060\ufeff\u00ad\u202a\u202b\u202c\u202d\u202e\u2061\u2064\u2066\u2067\u2068\u2069\u206a\u206f\ufff9":
        assert code(f"a{character}b") == "FORBIDDEN_CHARACTER"
    for point in (0xE0001, *range(0xE0020, 0xE0080)):
        assert code(f"a{chr(point)}") == "FORBIDDEN_CHARACTER"


@pytest.mark.parametrize(
    "alone", ["", " ", "\u3000", "\u00a0", "\u200d", "\u200c\u200d", "\u200e", "\u0301", "\ufe0f", "\u3164", "\u2800",
              "\u115f\u1160", " \u200d ", "\u3164 \u2800", "\U000e0100"],
)  # fmt: skip
def test_what_shows_nothing_is_blank(alone: str) -> None:
    assert code(alone) == "BLANK"


@pytest.mark.parametrize(
    "stacked",
    ["ཧྐྵྨླྺྼྻྂ", "דָּ֖וִד", "בְּרֵאשִׁ֖ית", "ကြွှော", "Ẹ̀kọ́", "क्‍ष", "ศิ์ษฏ์", "ṩ̣̇", "ഞ്ചു", "葛\U000e0100", "❤\ufe0f", "👩\u200d🚀", "ᠠ\u180b"],
)
def test_marks_of_real_texts_pass(stacked: str) -> None:
    assert code(stacked) is None


def test_marks_do_not_pile_up() -> None:
    assert code("x" + "\u0323" * 8) is None
    assert code("x" + "\u0323" * 9) == "TOO_MANY_MARKS"
    assert code("x" + "\u200d" * 9 + "y") == "TOO_MANY_MARKS"
    assert code("x" + "\u0323\u200d" * 5) == "TOO_MANY_MARKS"
    assert code("x\u0323" * 20) is None
    assert code("x" + "\u20dd" * 9) == "TOO_MANY_MARKS"


def test_one_variation_selector_follows_a_character() -> None:
    assert code("葛\U000e0100城\U000e0101") is None
    for flood in ("\ufe0f\ufe0f", "\ufe0e\ufe0f", "\U000e0100\U000e0101", "\ufe0f" * 20):
        assert code(f"a{flood}") == "FORBIDDEN_CHARACTER"


def test_lines_are_for_texts_that_have_them() -> None:
    assert code("a\nb\tc", Note) is None
    assert code("a\nb") == "FORBIDDEN_CHARACTER"
    assert code("a\rb", Note) == "FORBIDDEN_CHARACTER"
    assert code("太\u2028b", Note) == "FORBIDDEN_CHARACTER"


@given(st.text(alphabet=st.characters(codec="utf-16-be", categories=("L", "M", "Cf", "Zs")), max_size=60))
def test_what_is_accepted_stays_accepted(value: str) -> None:
    refused = code(value)
    if refused is not None:
        assert refused in ("BLANK", "TOO_LONG", "FORBIDDEN_CHARACTER", "TOO_MANY_MARKS")
        return
    accepted = Name(value)
    assert Name(accepted) == accepted
    assert len(accepted) <= 50
    assert accepted.encode().decode() == accepted


@given(
    st.text(alphabet=st.characters(categories=("Cs", "Co", "Cn", "Cc", "Zl", "Zp")), min_size=1, max_size=10),
    st.text(max_size=10),
)
def test_one_bad_character_is_enough(bad: str, good: str) -> None:
    assert code(f"{good}{bad}") in ("FORBIDDEN_CHARACTER", "TOO_LONG")
