"""Records: lines that nobody can break, bounds, what counts as one client, and keys."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiseki.kernel.ports import AuditEvent
from kiseki.security.audit.key import AuditKey, AuditKeyRefused
from kiseki.security.audit.log import new_writer
from kiseki.security.audit.record import LONGEST_LINE, Chain, Entry, Head, RecordProblem, bounded, read_line
from kiseki.security.audit.stdout_sink import unwrapped
from kiseki.security.audit.windows import Windows, source_of
from kiseki.security.masking import Masker
from tests.unit.security.audit.parts import KEYS, NOW, SECRET, refused

NASTY = [
    'line\nbreak"}\n{"v":1,"key":"x"}',
    "carriage\rreturn",
    "separators \u2028 and \u2029 and \x85",
    "change of direction \u202e evil \u2066 x \u2069",
    "\x1b[2J\x1b]0;title\x07 terminal",
    "NUL \0 and DEL \x7f and C1 \x9b",
    "surrogate \ud800 \udfff",
    "𠮷野 太郎 Владимир",
    '","mac":"' + "0" * 64 + '"}',
    "\ufeff\u200b",
]


def sealed(event: AuditEvent, **entry: Any) -> bytes:
    masked = bounded(event, Masker())
    return Chain(KEYS.current, new_writer()).seal(Entry(event=masked, at=NOW, **entry)).line


@pytest.mark.parametrize("text", NASTY)
def test_whatever_a_client_sends_stays_in_one_line_of_visible_ascii(text: str) -> None:
    line = sealed(refused(operation=text, detail=text, target=text, subject=text, actor=text))
    assert all(0x20 <= byte <= 0x7E for byte in line)
    assert read_line(line, KEYS).operation == text.replace("\ud800", "?").replace("\udfff", "?")
    assert json.loads(line)["code"] == "FORBIDDEN"


@given(st.text(alphabet=st.characters(), max_size=5_000), st.text(alphabet='𠮷\u202e"\\\n', max_size=3_000))
def test_a_line_is_bounded_and_authentic_whatever_is_in_it(first: str, second: str) -> None:
    texts = dict.fromkeys(("actor", "issuer", "subject", "address", "api", "operation", "target", "code"), second)
    after = Head(writer="W" * 26, number=10**12, mac="0" * 64)
    operations = tuple(bounded(refused(operation=second), Masker()).operation or "" for _ in range(8))
    line = sealed(refused(**texts, trace_id=second, detail=first), after=after, operations=operations, count=10**9)
    assert len(line) <= LONGEST_LINE
    assert all(0x20 <= byte <= 0x7E for byte in line)
    assert read_line(line, KEYS).count == 10**9


def test_what_is_too_long_is_cut_and_says_so() -> None:
    found = read_line(sealed(refused(detail="x" * 10_000, operation="y" * 10_000)), KEYS)
    assert found.detail == "x" * 599 + "…"
    assert found.operation == "y" * 199 + "…"


def test_the_order_of_fields_and_the_form_of_times_are_fixed() -> None:
    at = datetime(2026, 3, 1, 12, tzinfo=UTC)
    chain = Chain(KEYS.current, "01JQ0000000000000000000000")
    line = chain.seal(
        Entry(event=refused(actor="a", address="192.0.2.1"), at=at, count=2, first_at=at, last_at=at)
    ).line
    assert line.startswith(
        b'{"v":1,"key":"' + KEYS.current.id.encode() + b'","writer":"01JQ0000000000000000000000","number":1,'
        b'"at":"2026-03-01T12:00:00.000000Z","kind":"access.denied","outcome":"refused","actor":"a",'
        b'"address":"192.0.2.1","code":"FORBIDDEN","count":2,"first_at":"2026-03-01T12:00:00.000000Z",'
        b'"last_at":"2026-03-01T12:00:00.000000Z","previous":"' + b"0" * 64 + b'","mac":"'
    )


def test_the_mac_is_bound_to_key_writer_number_and_the_record_before() -> None:
    entry = Entry(event=refused(), at=NOW)
    chain = Chain(KEYS.current, new_writer())
    first, second = chain.seal(entry), chain.seal(entry)
    assert read_line(second.line, KEYS).previous == first.mac
    for old, new in [
        (b'"number":2', b'"number":3'),
        (first.mac.encode(), b"0" * 64),
        (chain.writer.encode(), new_writer().encode()),
        (b"refused", b"allowed"),
        (KEYS.current.id.encode(), b"0" * 16),
    ]:
        assert old in second.line
        with pytest.raises(RecordProblem):
            read_line(second.line.replace(old, new), KEYS)


@pytest.mark.parametrize("line", [b"", b"{}", b"x" * 100, b"\0" * 5_000, b'{"v":1}', b'{"v":1,"key":"'])
def test_what_is_no_record_is_a_problem(line: bytes) -> None:
    with pytest.raises(RecordProblem):
        read_line(line, KEYS)


def test_a_printed_record_is_unwrapped() -> None:
    line = sealed(refused())
    assert unwrapped(b'{"audit":' + line + b"}") == line
    assert unwrapped(line) == line


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("[2001:db8::1]", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
        (None, None),
    ],
)
def test_what_counts_as_one_client(address: str | None, source: str | None) -> None:
    assert source_of(address) == source


def test_addresses_of_one_network_share_a_window_and_other_codes_do_not() -> None:
    windows = Windows(seconds=10, most=100, bound=lambda event: event)
    for number in range(100):
        windows.add(refused(address=f"2001:db8::{number:x}"), at=NOW, now=1)
    assert windows.add(refused(address="2001:db8:0:1::1"), at=NOW, now=1) is not None
    assert windows.add(refused(address="2001:db8::1", code="OTHER"), at=NOW, now=1) is not None
    assert windows.add(refused(actor="a", address="2001:db8::1"), at=NOW, now=1) is not None
    (total,) = windows.ended(at=NOW, now=11)
    assert (total.count, total.event.address) == (99, "2001:db8::/64")


@pytest.mark.parametrize(
    ("actor", "addresses", "said"),
    [
        (None, ["2001:db8:1:2::1", "2001:db8:1:2::2", "2001:db8:1:2:3::4"], "2001:db8:1:2::/64"),
        (None, ["2001:db8:1:2::1", "2001:db8:1:2::1"], "2001:db8:1:2::1"),
        (None, ["::ffff:192.0.2.1", "192.0.2.1"], "192.0.2.1"),
        ("a", ["2001:db8:1:2::1", "2001:db8:1:2::2"], "2001:db8:1:2::/64"),
        ("a", ["2001:db8:1:2::1", "2001:db8:1:2::2", "2001:db8:1:3::1"], None),
        ("a", ["2001:db8:1:2::1", "2001:db8:1:2::2", "2001:db8:1:3::1", "2001:db8:1:2::1"], None),
        ("a", ["2001:db8:1:2::1", "2001:db8:1:2::2", "192.0.2.1"], None),
        ("a", ["192.0.2.1", "192.0.2.2"], None),
        ("a", ["192.0.2.1", None], None),
    ],
)
@pytest.mark.parametrize("traces", [False, True])
def test_a_sum_says_where_all_its_events_came_from(
    actor: str | None, addresses: list[str | None], said: str | None, traces: bool
) -> None:
    windows = Windows(seconds=10, most=100, bound=lambda event: bounded(event, Masker()))
    for number, address in enumerate([addresses[0], *addresses]):
        trace = f"{number // 2}" if traces else None
        windows.add(refused(actor=actor, address=address, trace_id=trace), at=NOW, now=1)
    (total,) = windows.ended(at=NOW, now=11)
    assert (total.count, total.event.address) == (len(addresses), said)


@pytest.mark.parametrize("kind", ["access.denied", "authentication.refused"])
def test_many_addresses_take_no_window_from_an_actor_or_another_kind(kind: str) -> None:
    windows = Windows(seconds=10, most=20, bound=lambda event: event)
    for number in range(5_000):
        for code in ("INVALID", "EXPIRED"):
            windows.add(refused(kind=kind, code=code, address=f"10.0.{number >> 8}.{number & 255}"), at=NOW, now=0)
    # 20 windows and what did not fit, for each code.
    assert len(windows) == 22
    about = {"address": "192.0.2.1"}
    for event in (
        refused(actor="mallory", **about),
        refused(actor="mallory", kind=kind, code="OTHER", **about),
        refused(kind="limit.hit", **about),
        refused(kind="request.refused", **about),
        refused(kind="jwks.failed"),
    ):
        entry = windows.add(event, at=NOW, now=1)
        assert entry is not None
        assert entry.event == event
    windows.add(refused(actor="mallory", **about), at=NOW, now=2)
    sums = [each.event for each in windows.all(at=NOW) if each.event.actor]
    assert [(event.actor, event.address) for event in sums] == [("mallory", "192.0.2.1")]


def test_many_actors_take_no_window_from_addresses_and_what_does_not_fit_is_summed_apart() -> None:
    windows = Windows(seconds=10, most=20, bound=lambda event: event)
    for number in range(1_000):
        windows.add(refused(kind="limit.hit", actor=str(number), address="192.0.2.9"), at=NOW, now=0)
    for number in range(1_000):
        windows.add(refused(kind="limit.hit", address=f"10.0.{number >> 8}.{number & 255}"), at=NOW, now=0)
    totals = list(windows.all(at=NOW))
    assert [(total.count, total.event.address) for total in totals] == [(980, "192.0.2.9"), (980, None)]


def test_a_window_that_ends_gives_its_place_back() -> None:
    windows = Windows(seconds=10, most=2, bound=lambda event: event)
    for now in (0, 20, 40):
        assert len(list(windows.ended(at=NOW, now=now))) == (1 if now else 0)
        for number in range(40):
            entry = windows.add(refused(kind=f"kind.{number % 20}", actor=f"{now}-{number}"), at=NOW, now=now)
            # Sixteen kinds have a bound of their own, the other four share one.
            assert (entry is not None) == (number < 18 or 20 <= number < 36), number
        assert len(windows) == 16 * 2 + 2 + 4
        assert sum(total.count for total in windows.ended(at=NOW, now=now + 10)) == 6
        assert len(windows) == 0
        windows.add(refused(actor="a"), at=NOW, now=now + 9)
        windows.add(refused(actor="a"), at=NOW, now=now + 9)


def test_who_a_pseudonym_stands_for_is_never_summed_and_takes_no_window() -> None:
    windows = Windows(seconds=10, most=2, bound=lambda event: bounded(event, Masker()))
    for number in range(1_000):
        event = refused(kind="actor.seen", actor=f"{number}", issuer="https://issuer.example", subject=f"user{number}")
        for _ in range(2):
            entry = windows.add(event, at=NOW, now=0)
            assert entry is not None
            assert (entry.count, entry.event) == (1, event)
    assert (len(windows), windows.coalesced) == (0, 0)
    assert windows.add(refused(actor="mallory"), at=NOW, now=0) is not None


def test_beyond_the_bound_events_share_windows_by_kind_and_then_one_for_all() -> None:
    windows = Windows(seconds=10, most=2, bound=lambda event: event)
    written = [windows.add(refused(kind=f"kind.{number}", actor=str(number)), at=NOW, now=0) for number in range(500)]
    # Sixteen kinds have a bound of their own, of which each takes one; the others share one of two.
    assert sum(entry is not None for entry in written) == 16 + 2
    assert len(windows) == 16 + 2 + 64 + 1
    totals = list(windows.all(at=NOW))
    assert sum(total.count for total in totals) == 500 - 18
    assert totals[-1].event.kind == "audit.others"
    assert len(windows) == 0
    assert windows.next_end() is None


def test_a_window_ends_after_its_time_and_the_next_event_is_written_again() -> None:
    windows = Windows(seconds=10, most=100, bound=lambda event: event)
    assert windows.add(refused(actor="a"), at=NOW, now=0) is not None
    assert windows.add(refused(actor="a"), at=NOW, now=9.9) is None
    assert list(windows.ended(at=NOW, now=9.9)) == []
    assert windows.next_end() == 10
    assert [total.count for total in windows.ended(at=NOW, now=10)] == [1]
    assert windows.add(refused(actor="a"), at=NOW, now=10.1) is not None


@pytest.mark.parametrize("secret", [b"", b"short", b"x" * 31, b"a" * 64, b"abababab" * 8])
def test_weak_secrets_are_refused(secret: bytes) -> None:
    with pytest.raises(AuditKeyRefused) as caught:
        AuditKey(secret)
    assert not secret or secret.decode() not in str(caught.value)


def test_a_key_shows_only_its_id() -> None:
    key = AuditKey(SECRET)
    assert repr(key) == f"AuditKey({key.id})"
    assert SECRET.decode() not in repr(key)
    assert AuditKey(SECRET).id == key.id
    assert AuditKey(SECRET + b"!").id != key.id
    assert len({key.of_record(b"x"), key.of_anchor(b"x"), key.of_manifest(b"x")}) == 3


def test_a_key_file_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "audit.key"
    key = AuditKey.load_or_create(path)
    assert AuditKey.load_or_create(path).id == key.id
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["audit.key"]
    path.chmod(0o640)
    with pytest.raises(AuditKeyRefused, match="chmod 600"):
        AuditKey.load_or_create(path)
