"""Unit: tokens of one's own."""

from __future__ import annotations

from typing import Any

import pytest

from kiseki.kernel.ports import AuditUnavailable
from kiseki.security.identity.issuing import IssuingRefused, TokenIssuer
from kiseki.security.identity.keys import SigningKey
from tests.unit.security.identity.token_parts import EVERY_KEY, HS256, ISSUER, RULES, Setup, bearer


def issuer_of(setup: Setup, key: SigningKey = HS256, *, production: bool = False, kind: str = "JWT") -> TokenIssuer:
    return TokenIssuer(
        key, rules=RULES, clock=setup.clock, auditor=setup.audited, production=production, token_type=kind
    )


@pytest.mark.parametrize("key", EVERY_KEY, ids=lambda key: key.algorithm)
async def test_what_is_issued_is_believed(key: SigningKey) -> None:
    setup = Setup(key.verification)
    issued = await issuer_of(setup, key).issue("太郎", roles=["user", "admin", "user"], user_id="01J", lifetime=60)
    principal = await setup.identity.identify(bearer(issued.token.encode()))
    assert (principal.subject, principal.user_id, principal.roles) == ("太郎", "01J", frozenset({"user", "admin"}))
    assert principal.expires_at == issued.expires_at == setup.now + 60


async def test_issuing_is_audited_without_the_token() -> None:
    setup = Setup()
    issued = await issuer_of(setup).issue("u-1", roles=["admin"], actor="operator")
    (event,) = setup.audited.events
    assert (event.kind, event.outcome, event.actor, event.subject) == ("token.issued", "done", "operator", "u-1")
    assert (event.issuer, event.target) == (ISSUER, issued.id)
    assert issued.token not in repr(event)
    assert issued.token not in repr(issued) + str(issued)


async def test_what_cannot_be_audited_is_not_issued() -> None:
    setup = Setup()
    setup.audited.problem = AuditUnavailable("full")
    with pytest.raises(AuditUnavailable):
        await issuer_of(setup).issue("u-1")


async def test_production_is_meant() -> None:
    setup = Setup()
    issuer = issuer_of(setup, production=True)
    with pytest.raises(IssuingRefused, match="--production"):
        await issuer.issue("u-1")
    assert setup.audited.events == []
    assert (await issuer.issue("u-1", production=True)).token
    assert setup.audited.kinds() == ["token.issued"]


@pytest.mark.parametrize(
    "given",
    [
        {"subject": ""},
        {"subject": "x" * 256},
        {"subject": "a\nb"},
        {"subject": 'a","roles":["admin"],"x":"\0'},
        {"user_id": ""},
        {"roles": [""]},
        {"roles": ["a\nb"]},
        {"roles": ["x" * 65]},
        {"roles": [str(number) for number in range(33)]},
        {"lifetime": 0},
        {"lifetime": -1},
        {"lifetime": 3601},
    ],
    ids=repr,
)
async def test_what_is_not_issued(given: dict[str, Any]) -> None:
    setup = Setup()
    with pytest.raises(IssuingRefused):
        await issuer_of(setup).issue(**({"subject": "u-1"} | given))
    assert setup.audited.events == []


async def test_claims_are_never_glued_together() -> None:
    setup = Setup()
    subject = 'u","roles":["admin"],"sub":"x'
    issued = await issuer_of(setup).issue(subject, roles=['a","b'])
    principal = await setup.identity.identify(bearer(issued.token.encode()))
    assert (principal.subject, principal.roles) == (subject, frozenset({'a","b'}))


async def test_the_type_is_the_one_of_the_settings() -> None:
    setup = Setup(required_type="at+jwt")
    await setup.identity.identify(bearer((await issuer_of(setup, kind="at+jwt").issue("u-1")).token.encode()))
