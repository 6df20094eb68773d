"""Unit: what header fields say."""

from __future__ import annotations

import pytest

from kiseki.service.heads import read_head

TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"


class Ids:
    def new_id(self) -> str:
        return "A-NEW-ID"


@pytest.mark.parametrize(
    "value",
    [
        b"00-" + TRACE + b"-00f067aa0ba902b7-01",
        b"00-" + TRACE + b"-00f067aa0ba902b7-ff",
        b"cc-" + TRACE + b"-00f067aa0ba902b7-01-what-the-future-will-be-like",
        b"cc-" + TRACE + b"-00f067aa0ba902b7-01",
    ],
)
def test_a_valid_traceparent_gives_the_trace_id(value: bytes) -> None:
    assert read_head([(b"traceparent", value)]).trace_id() == TRACE.decode()


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"00-" + TRACE,
        b"ff-" + TRACE + b"-00f067aa0ba902b7-01",
        b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01",
        b"00-" + TRACE + b"-" + b"0" * 16 + b"-01",
        b"00-" + TRACE.upper() + b"-00f067aa0ba902b7-01",
        b"00-" + TRACE + b"-00f067aa0ba902b7-01-more",
        b"cc-" + TRACE + b"-00f067aa0ba902b7-01more",
        b"00-" + TRACE + b"-00f067aa0ba902b7-1",
        b" 00-" + TRACE + b"-00f067aa0ba902b7-01",
    ],
)
def test_any_other_traceparent_is_replaced_by_a_new_random_id(value: bytes) -> None:
    head = read_head([(b"traceparent", value)])
    first, second = head.trace_id(), head.trace_id()
    assert first != second
    assert TRACE.decode() not in (first, second)
    assert len(first) == 32
    assert int(first, 16) > 0


def test_a_doubled_traceparent_is_replaced_and_not_refused() -> None:
    field = (b"traceparent", b"00-" + TRACE + b"-00f067aa0ba902b7-01")
    head = read_head([field, field])
    assert head.trace_id() != TRACE.decode()
    assert head.repeated is None


@pytest.mark.parametrize("value", [b"01J00000000000000000000001", b"order.42_A~x-1", b"x" * 64])
def test_a_correlation_id_of_harmless_characters_is_kept(value: bytes) -> None:
    assert read_head([(b"x-correlation-id", value)]).correlation_id(Ids()) == value.decode()


@pytest.mark.parametrize("value", [b"", b"x" * 65, b"a b", b"a\nb", b"<script>", "å".encode(), b"a@b.c"])
def test_any_other_correlation_id_is_replaced(value: bytes) -> None:
    assert read_head([(b"x-correlation-id", value)]).correlation_id(Ids()) == "A-NEW-ID"


def test_a_doubled_correlation_id_is_replaced() -> None:
    assert read_head([(b"x-correlation-id", b"a"), (b"x-correlation-id", b"a")]).correlation_id(Ids()) == "A-NEW-ID"


@pytest.mark.parametrize("name", [b"host", b"content-type", b"idempotency-key", b"kiseki-consistency-token"])
def test_fields_that_must_be_single_are_named_when_they_are_not(name: bytes) -> None:
    assert read_head([(name, b"a")]).repeated is None
    assert read_head([(name, b"a"), (name, b"a")]).repeated == name.decode()


def test_every_authorization_is_kept() -> None:
    head = read_head([(b"authorization", b"a"), (b"host", b"h"), (b"authorization", b"b")])
    assert head.credentials(("192.0.2.1", 4711)).authorization == (b"a", b"b")


def test_accept_in_parts_is_one_list() -> None:
    assert read_head([(b"accept", b"a/b"), (b"accept", b"c/d")]).accept == b"a/b, c/d"


@pytest.mark.parametrize(
    "name", [b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip", b"via"]
)
def test_forwarding_is_noticed(name: bytes) -> None:
    assert read_head([(name, b"192.0.2.1")]).credentials(None).forwarded


def test_credentials_say_where_a_request_comes_from() -> None:
    given = read_head([(b"host", b"localhost:1")]).credentials(("::1", 4711, 0, 0))
    assert (given.peer, given.host, given.forwarded, given.authorization) == ("::1", "localhost:1", False, ())
    assert read_head([]).credentials(None).peer is None


def test_the_size_is_that_of_the_fields_as_sent() -> None:
    assert read_head([(b"host", b"h"), (b"a", b"")]).bytes == len(b"host: h\r\n") + len(b"a: \r\n")
