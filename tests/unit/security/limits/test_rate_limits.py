"""The limits of a service: by address, by subject, by cost; each refusal is noted with who and where."""

from __future__ import annotations

from kiseki.kernel.ports import Principal
from kiseki.security.limits.facade import RateLimits, subject_key
from kiseki.security.limits.memory import MemoryLimiter
from kiseki.security.limits.shared import SharedLimiter
from kiseki.security.limits.shared_store import SharedWindows
from kiseki.security.limits.verdict import LimitPolicy
from tests.unit.security.fakes import FakeClock
from tests.unit.security.limits.limit_parts import CommandedStore, ListAuditor

HANAKO = Principal(subject="hanako", actor="p1", roles=frozenset(), issuer="https://issuer.example")
TARO = Principal(subject="taro", actor="p2", roles=frozenset(), issuer="https://issuer.example")


def rate_limits(auditor: ListAuditor, *, address: int = 30, subject: int = 10) -> RateLimits:
    clock = FakeClock()
    return RateLimits(
        by_address=MemoryLimiter(LimitPolicy("address", address), clock=clock),
        by_subject=MemoryLimiter(LimitPolicy("subject", subject), clock=clock),
        auditor=auditor,
        api="command",
    )


async def test_an_address_has_its_limit_and_the_refusal_is_noted() -> None:
    auditor = ListAuditor()
    limits = rate_limits(auditor, address=3)
    verdicts = [await limits.by_address("203.0.113.9", trace_id="t1") for _ in range(5)]
    assert [one.allowed for one in verdicts] == [True, True, True, False, False]
    assert (await limits.by_address("203.0.113.10")).allowed
    assert auditor.kinds == ["limit.hit", "limit.hit"]
    event = auditor.events[0]
    assert (event.outcome, event.address, event.target, event.api, event.code, event.trace_id) == (
        "refused",
        "203.0.113.9",
        "address",
        "command",
        "RATE_LIMITED",
        "t1",
    )
    assert (event.actor, event.subject) == (None, None)
    assert limits.counts()["address", "allowed"] == 4
    assert limits.counts()["address", "refused"] == 2


async def test_ipv6_addresses_of_one_customer_have_one_limit() -> None:
    limits = rate_limits(ListAuditor(), address=3)
    verdicts = [await limits.by_address(f"2001:db8:1:2::{number}") for number in range(1, 6)]
    assert sum(one.allowed for one in verdicts) == 3
    assert (await limits.by_address("2001:db8:1:3::1")).allowed


async def test_a_subject_has_its_limit_from_whatever_address_and_work_counts() -> None:
    auditor = ListAuditor()
    limits = rate_limits(auditor, subject=10)
    assert (await limits.by_subject(HANAKO, "203.0.113.9")).remaining == 9
    assert (await limits.by_subject(HANAKO, "203.0.113.10", 5)).remaining == 4
    refused = await limits.by_subject(HANAKO, "203.0.113.11", 5, trace_id="t2")
    assert (refused.allowed, refused.remaining) == (False, 4)
    assert (await limits.by_subject(TARO, "203.0.113.9", 10)).allowed
    event = auditor.events[0]
    assert (event.kind, event.target, event.actor, event.issuer, event.subject, event.address, event.trace_id) == (
        "limit.hit",
        "subject",
        "p1",
        "https://issuer.example",
        "hanako",
        "203.0.113.11",
        "t2",
    )
    assert limits.keys() == {"address": 0, "subject": 2}
    assert limits.crowded() == 0


def test_subjects_of_other_issuers_are_others_however_they_are_cut() -> None:
    keys = {subject_key(*pair) for pair in (("ab", "c"), ("a", "bc"), ("", "abc"), ("abc", ""), ("1:a", "b"))}
    assert len(keys) == 5


async def test_in_memory_the_answer_is_always_at_hand() -> None:
    limits = rate_limits(ListAuditor(), address=1, subject=1)
    first, second = limits.by_address_now("203.0.113.9"), limits.by_address_now("203.0.113.9")
    assert first is not None
    assert second is not None
    assert (first.allowed, second.allowed) == (True, False)
    third = limits.by_subject_now(HANAKO, "203.0.113.9")
    assert third is not None
    assert third.allowed
    assert limits.shared_available() is None
    await limits.close()


async def test_with_a_shared_store_both_limits_ask_it_and_it_is_closed_with_them() -> None:
    clock, auditor, store = FakeClock(), ListAuditor(), CommandedStore()
    shared = SharedWindows(store, clock=clock, auditor=auditor)
    limits = RateLimits(
        by_address=SharedLimiter(LimitPolicy("address", 30), shared=shared, clock=clock),
        by_subject=SharedLimiter(LimitPolicy("subject", 10), shared=shared, clock=clock),
        auditor=auditor,
        shared=shared,
    )
    assert limits.by_address_now("203.0.113.9") is None
    assert limits.by_subject_now(HANAKO, "203.0.113.9") is None
    assert limits.counts()["address", "allowed"] == 0
    await limits.by_address("2001:db8:1:2::1")
    await limits.by_subject(HANAKO, "203.0.113.9", 3)
    assert store.calls == [("2001:db8:1:2::/64", 1), ("22:https://issuer.examplehanako", 3)]
    assert limits.shared_available() is True
    await limits.close()
    assert store.closed == 1
