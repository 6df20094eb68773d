"""Consistency tokens: what goes in comes out, and nothing else is taken."""

from __future__ import annotations

import base64

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kiseki.query.consistency import ConsistencyToken, InvalidToken

streams = st.from_regex(r"[A-Za-z][A-Za-z0-9]{0,9}-[A-Za-z0-9._~-]{1,40}", fullmatch=True)
pairs = st.lists(st.tuples(streams, st.integers(1, 10**18 - 1)), max_size=30)


def spelled(plain: str) -> str:
    return "v1." + base64.urlsafe_b64encode(plain.encode()).rstrip(b"=").decode()


@given(pairs)
def test_a_token_reads_back_as_it_was(given_pairs: list[tuple[str, int]]) -> None:
    token = ConsistencyToken(given_pairs)
    text = token.encode()
    assert ConsistencyToken.parse(text) == token
    assert text.isascii()
    assert not set(text) - set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")


@given(pairs)
def test_the_newest_sixteen_streams_are_kept_with_their_highest_numbers(given_pairs: list[tuple[str, int]]) -> None:
    token = ConsistencyToken()
    for stream, number in given_pairs:
        token = token.with_stream(stream, number)
    newest = list(dict.fromkeys(stream for stream, _ in reversed(given_pairs)))[:16]
    highest = {stream: max(n for s, n in given_pairs if s == stream) for stream in newest}
    kept = dict(token.pairs)
    assert list(reversed(kept)) == newest
    # A number that was forgotten with its stream may be missing; what is kept is never above what was written.
    assert all(0 < number <= highest[stream] for stream, number in kept.items())
    if len({stream for stream, _ in given_pairs}) <= 16:
        assert kept == highest


@given(pairs, pairs)
def test_merging_waits_for_both(one: list[tuple[str, int]], two: list[tuple[str, int]]) -> None:
    merged = ConsistencyToken(one[:8]).merge(ConsistencyToken(two[:8]))
    for stream, number in [*one[:8], *two[:8]]:
        assert dict(merged.pairs)[stream] >= number


@given(st.text(max_size=300))
@example("v1.")
def test_any_text_is_a_token_or_refused(text: str) -> None:
    try:
        token = ConsistencyToken.parse(text)
    except InvalidToken:
        return
    assert token.encode() == text


def test_the_refusal_has_its_code() -> None:
    with pytest.raises(InvalidToken) as refused:
        ConsistencyToken.parse("secret")
    assert refused.value.code == "INVALID_TOKEN"
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "v1",
        "v2." + base64.urlsafe_b64encode(b"A-1:1").decode().rstrip("="),
        spelled("A-1:1") + "=",
        " " + spelled("A-1:1"),
        spelled("A-1:0"),
        spelled("A-1:01"),
        spelled("A-1:-1"),
        spelled("A-1:+1"),
        spelled("A-1:1000000000000000000"),
        spelled("A-1:1,"),
        spelled("A-1:1,A-1:2"),
        spelled("A-1"),
        spelled("A-1:1\n"),
        spelled("A:1"),
        spelled("A/B-1:1"),
        spelled("Ä-1:1"),
        spelled("A-1:٣"),
        spelled("A-" + "x" * 254 + ":1"),
        spelled(",".join(f"A-{n}:1" for n in range(17))),
        "v1." + "A" * 8_000,
        "v1.\N{SNOWMAN}",
    ],
)
def test_what_is_not_exactly_a_token_is_refused(text: str) -> None:
    with pytest.raises(InvalidToken):
        ConsistencyToken.parse(text)


def test_another_spelling_of_the_same_bytes_is_refused() -> None:
    """The last character of base64 can have bits that count for nothing."""
    assert ConsistencyToken([("ABC-1", 1)]).encode() == "v1.QUJDLTE6MQ"
    assert base64.urlsafe_b64decode("QUJDLTE6MR==") == b"ABC-1:1"
    with pytest.raises(InvalidToken):
        ConsistencyToken.parse("v1.QUJDLTE6MR")


def test_a_stream_with_an_enormous_name_is_left_out() -> None:
    """Its token would be one that can't be read; not waiting for it is better than failing."""
    token = ConsistencyToken([("A" * 300 + "-1", 1), ("A-1", 2)])
    assert token.pairs == (("A-1", 2),)


def test_an_empty_token_waits_for_nothing() -> None:
    assert not ConsistencyToken()
    assert ConsistencyToken([("A-1", 1)])
    assert ConsistencyToken.parse("v1.").pairs == ()


def test_the_longest_token_fits_and_is_read() -> None:
    token = ConsistencyToken([(f"A{n:02}-" + "x" * 200, 10**18 - 1) for n in range(16)])
    assert len(token.pairs) == 16
    assert ConsistencyToken.parse(token.encode()) == token
