"""Value objects: what text is accepted, whoever's name it is."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiseki import InvalidValue, StreamId, Text, WholeNumber
from kiseki.kernel.text import forbidden_character


class Name(Text, max_length=50):
    pass


class Short(Text, max_length=10, max_bytes=12, min_length=2):
    pass


class Amount(WholeNumber, minimum=1, maximum=9):
    pass


@pytest.mark.parametrize(
    "name",
    [
        "O'Brien", "Waldrop", "Drop", "Null", "Anne--Marie", "太郎", "𠮷野", "Владимир", "Ñandú", "محمد", "李", "null",
        "SELECT", "<b>Bob</b>", "; DROP TABLE users;--", "नेहा", "می‌خواهم", "ʻOkina", "Jean‑Luc", "山田　太郎", "👩‍🚀",
    ],
)  # fmt: skip
def test_real_names_pass_and_stay_as_given(name: str) -> None:
    assert Name(name) == name


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("", "BLANK"), ("   ", "BLANK"), ("\u3000", "BLANK"), ("a" * 51, "TOO_LONG"), ("𠮷" * 51, "TOO_LONG"),
        ("a\0b", "FORBIDDEN_CHARACTER"), ("a\nb", "FORBIDDEN_CHARACTER"), ("a\x1bb", "FORBIDDEN_CHARACTER"),
        ("a\ud800b", "FORBIDDEN_CHARACTER"), ("a\u202eb", "FORBIDDEN_CHARACTER"), ("a\u2066b", "FORBIDDEN_CHARACTER"),
        ("a\ufeffb", "FORBIDDEN_CHARACTER"), ("a\u2028b", "FORBIDDEN_CHARACTER"), ("a\ue000b", "FORBIDDEN_CHARACTER"),
        ("a\uffffb", "FORBIDDEN_CHARACTER"), ("a\x7fb", "FORBIDDEN_CHARACTER"), ("a\x85b", "FORBIDDEN_CHARACTER"),
    ],
)  # fmt: skip
def test_what_no_name_holds_is_refused_without_repeating_it(value: str, code: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        Name(value)
    assert refused.value.code == code
    assert not value or value not in refused.value.message


def test_text_is_normalised_to_nfc_and_counted_after_it() -> None:
    decomposed = "e\u0301" * 50
    assert Name(decomposed) == "é" * 50
    assert unicodedata.is_normalized("NFC", Name("か\u3099"))


def test_bytes_are_bounded_where_asked() -> None:
    assert Short("太郎太郎") == "太郎太郎"
    with pytest.raises(InvalidValue, match="12 bytes"):
        Short("太郎太郎太")
    with pytest.raises(InvalidValue, match="at least 2"):
        Short("a")


@given(st.text(max_size=60))
def test_whatever_is_accepted_is_storable_everywhere(value: str) -> None:
    try:
        accepted = Name(value)
    except InvalidValue:
        return
    assert "\0" not in accepted
    accepted.encode()
    assert 1 <= len(accepted) <= 50
    assert forbidden_character(accepted) is None
    assert unicodedata.is_normalized("NFC", accepted)
    assert Name(accepted) == accepted


def test_whole_numbers_have_bounds() -> None:
    assert Amount(9) == 9
    for value in (0, 10):
        with pytest.raises(InvalidValue) as refused:
            Amount(value)
        assert refused.value.code == "OUT_OF_RANGE"


@pytest.mark.parametrize("value", ["", "a b", "a/b", "ä", "x" * 201, "a\n", "../x", "a'b"])
def test_ids_have_a_closed_alphabet(value: str) -> None:
    with pytest.raises(InvalidValue):
        StreamId(value)
    assert StreamId("01JD-._~x") == "01JD-._~x"
