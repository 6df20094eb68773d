"""Keyed hashes: the same for the same input for ever, different for anything else."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiseki.kernel.errors import DefinitionError
from kiseki.security.digests import Digests
from tests.unit.security.fakes import ROOT

TEXTS = st.text(st.characters(), max_size=20)  # lone surrogates too


def test_digests_in_journals_stay_findable() -> None:
    """Frozen: a change here loses every claim and idempotency key of every journal."""
    digests = Digests(ROOT)
    assert digests.digest("claim|email", "hanako@example.com") == (
        "a5ce9e0847402d8508d9ffc30e18cec098fb4302a4ccfc5310acdc9638171160"
    )
    assert digests.pseudonym("https://issuer.example", "hanako") == "ed0ebbe77e4c3c3fa339aba1c72e8957"


@given(first=st.tuples(TEXTS, TEXTS), second=st.tuples(TEXTS, TEXTS))
def test_only_the_same_scope_and_value_give_the_same_digest(first: tuple[str, str], second: tuple[str, str]) -> None:
    digests = Digests(ROOT)
    assert (digests.digest(*first) == Digests(ROOT).digest(*second)) == (first == second)
    assert re.fullmatch("[0-9a-f]{64}", digests.digest(*first))


def test_scope_and_value_do_not_run_together() -> None:
    digests = Digests(ROOT)
    assert digests.digest("ab", "c") != digests.digest("a", "bc")
    assert digests.digest("", "abc") != digests.digest("abc", "")


def test_digests_pseudonyms_and_roots_are_apart() -> None:
    digests = Digests(ROOT)
    assert not digests.digest("a", "b").startswith(digests.pseudonym("a", "b"))
    assert re.fullmatch("[0-9a-f]{32}", digests.pseudonym("a", "b"))
    other = Digests(bytes(32))
    assert digests.digest("a", "b") != other.digest("a", "b")
    assert digests.pseudonym("a", "b") != other.pseudonym("a", "b")


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_root_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(DefinitionError, match="32 bytes"):
        Digests(bytes(length))


def test_the_root_is_in_no_repr() -> None:
    digests = Digests(ROOT)
    assert repr(ROOT) not in repr(digests)
    assert all(getattr(digests, name) != ROOT for name in Digests.__slots__)
