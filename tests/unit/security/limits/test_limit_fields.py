"""The header fields of limits: structured fields that any client can read."""

from __future__ import annotations

import re

from kiseki.security.limits.verdict import LimitPolicy, Verdict, rate_limit_fields, verdict

_MEMBER = r'"[a-z][a-z0-9-]*"(?:;[a-z]=\d{1,15})+'
SUBJECT = LimitPolicy("subject", 100)
ADDRESS = LimitPolicy("address", 300)


def allowed(policy: LimitPolicy, used: int, reset: float) -> Verdict:
    return verdict(policy, limit=policy.limit, used=used, reset_after=reset, wait=None)


def test_what_is_left_and_until_when() -> None:
    assert allowed(SUBJECT, 50, 29.2).fields() == (
        (b"ratelimit-policy", b'"subject";q=100;w=60'),
        (b"ratelimit", b'"subject";r=50;t=30'),
    )


def test_a_refusal_says_when_to_come_again() -> None:
    refused = verdict(SUBJECT, limit=100, used=100, reset_after=60.5, wait=4.01)
    assert refused.fields() == (
        (b"ratelimit-policy", b'"subject";q=100;w=60'),
        (b"ratelimit", b'"subject";r=0;t=61'),
        (b"retry-after", b"5"),
    )
    assert verdict(SUBJECT, limit=100, used=100, reset_after=60.5, wait=0.0).retry_after == 1


def test_several_limits_are_one_list() -> None:
    fields = dict(rate_limit_fields([allowed(ADDRESS, 1, 60.5), allowed(SUBJECT, 100, 0.0)]))
    assert fields[b"ratelimit-policy"] == b'"address";q=300;w=60, "subject";q=100;w=60'
    assert fields[b"ratelimit"] == b'"address";r=299;t=61, "subject";r=0;t=0'
    assert b"retry-after" not in fields
    for value in fields.values():
        assert re.fullmatch(rf"{_MEMBER}(?:, {_MEMBER})*", value.decode())


def test_no_limit_no_fields() -> None:
    assert rate_limit_fields([]) == ()


def test_more_than_the_limit_leaves_nothing_not_less() -> None:
    assert verdict(SUBJECT, limit=25, used=100, reset_after=1, wait=1).remaining == 0
