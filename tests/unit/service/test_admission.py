"""Unit: how many connections are held."""

from __future__ import annotations

from kiseki.service.admission import Admission


def test_the_whole_is_bounded() -> None:
    admission = Admission(total=2, per_address=0)
    first, second = admission.enter("a"), admission.enter(None)
    assert first is not None
    assert second is not None
    assert admission.enter("c") is None
    assert (admission.open, admission.refused) == (2, 1)
    first.leave()
    first.leave()
    assert admission.open == 1
    assert admission.enter("c") is not None


def test_one_address_can_not_take_the_places_of_others() -> None:
    admission = Admission(total=10, per_address=2)
    seats = [admission.enter("10.0.0.1") for _ in range(3)]
    assert [seat is not None for seat in seats] == [True, True, False]
    assert admission.enter("10.0.0.2") is not None
    assert seats[0] is not None
    seats[0].leave()
    assert admission.enter("10.0.0.1") is not None


def test_ipv6_counts_by_its_prefix_and_mapped_addresses_as_ipv4() -> None:
    admission = Admission(total=0, per_address=1)
    assert admission.enter("2001:db8::1") is not None
    assert admission.enter("2001:db8::ffff:2") is None
    assert admission.enter("2001:db8:0:1::1") is not None
    assert admission.enter("::ffff:10.0.0.1") is not None
    assert admission.enter("10.0.0.1") is None


def test_proxies_and_unix_sockets_are_not_counted_by_address() -> None:
    admission = Admission(total=100, per_address=1, exempt=lambda address: address == "10.0.0.9")
    assert all(admission.enter("10.0.0.9") for _ in range(10))
    assert all(admission.enter(None) for _ in range(10))


def test_nothing_is_kept_of_connections_that_have_ended() -> None:
    admission = Admission(total=0, per_address=5)
    for number in range(1_000):
        seat = admission.enter(f"10.0.{number // 250}.{number % 250}")
        assert seat is not None
        seat.leave()
    assert admission.open == 0
    assert not admission._counts
