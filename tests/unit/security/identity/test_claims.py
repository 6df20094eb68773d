"""Unit: what the claims of a token have to be, to the second and to the type."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from kiseki.kernel.errors import DefinitionError
from kiseki.security.identity.claims import ClaimRules
from kiseki.security.identity.refusals import TokenRefused
from tests.unit.security.identity.token_parts import AUDIENCE, HS256, ISSUER, RULES, Setup, bearer, claims, signed

NOW = 1_800_000_000.0


def cause(at: float = NOW, by: ClaimRules = RULES, /, **changes: Any) -> str | None:
    try:
        by.check(claims(NOW, **changes), at)
    except TokenRefused as refused:
        return str(refused.cause)
    return None


@pytest.mark.parametrize("name", ["iss", "aud", "sub", "exp", "iat"])
def test_what_is_required(name: str) -> None:
    assert cause(**{name: None}) == "BAD_CLAIM"
    assert cause() is None


WRONG: list[Any] = [True, False, 0, 1, 1.5, [], ["x"], {}, {"a": 1}, ""]


@pytest.mark.parametrize("value", [each for each in WRONG if not isinstance(each, str)], ids=repr)
@pytest.mark.parametrize("name", ["iss", "sub", "userId"])
def test_texts_are_texts(name: str, value: Any) -> None:
    assert cause(**{name: value}) == "BAD_CLAIM"


@pytest.mark.parametrize("name", ["sub", "userId"])
@pytest.mark.parametrize("value", ["", "x" * 256, "a\0b", "a\nb", "a\x7fb", "a\x85b", "a\ud800b"], ids=repr)
def test_who_it_is_can_be_shown(name: str, value: str) -> None:
    assert cause(**{name: value}) == "BAD_CLAIM"


@pytest.mark.parametrize("value", ["x", "x" * 255, "太郎", "o'brien", "auth0|123", "a b"])
def test_subjects_are_any_other_text(value: str) -> None:
    found = RULES.check(claims(NOW, sub=value), NOW)
    assert (found.subject, found.user_id) == (value, value)


def test_the_own_account_is_user_id_or_else_the_subject() -> None:
    assert RULES.check(claims(NOW, userId="01J"), NOW).user_id == "01J"


@pytest.mark.parametrize(
    "value", [ISSUER + "/", ISSUER.upper(), " " + ISSUER, "https://issuer.example.attacker", "issuer.example", ""]
)
def test_the_issuer_is_compared_exactly(value: str) -> None:
    assert cause(iss=value) == "WRONG_ISSUER"


@pytest.mark.parametrize("value", [AUDIENCE, [AUDIENCE], ["other", AUDIENCE], [AUDIENCE, AUDIENCE]])
def test_our_audience(value: Any) -> None:
    assert cause(aud=value) is None


@pytest.mark.parametrize(
    "value", ["other", "kiseki2", "Kiseki", " kiseki", "kiseki other", "other,kiseki", "*", "", ["other"], ["kiseki "]]
)
def test_other_audiences(value: Any) -> None:
    assert cause(aud=value) == "WRONG_AUDIENCE"


@pytest.mark.parametrize(
    "value",
    [[], {}, {"kiseki": 1}, 1, True, [[AUDIENCE]], [AUDIENCE, 1], [None, AUDIENCE], [{"a": AUDIENCE}], ["x"] * 33],
    ids=repr,
)
def test_audiences_are_texts(value: Any) -> None:
    assert cause(aud=value) == "BAD_CLAIM"


@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
@pytest.mark.parametrize(
    "value",
    [True, False, str(int(NOW)), "", [NOW], {}, 0, -1, -NOW, 1e300, 253_402_300_800, 10**30, math.nan, math.inf],
    ids=repr,
)
def test_times_are_numbers_of_our_age(name: str, value: Any) -> None:
    assert cause(**{name: value}) == "BAD_CLAIM"


@pytest.mark.parametrize(
    ("changes", "now", "expected"),
    [
        # 10 seconds of leeway: exp is the first second it is not good any more.
        ({"exp": NOW + 600}, NOW + 609.999, None),
        ({"exp": NOW + 600}, NOW + 610, "EXPIRED"),
        ({"iat": NOW + 10}, NOW, None),
        ({"iat": NOW + 10.001}, NOW, "ISSUED_IN_FUTURE"),
        ({"nbf": NOW + 10}, NOW, None),
        ({"nbf": NOW + 10.001}, NOW, "NOT_YET_VALID"),
        ({"iat": NOW, "exp": NOW + 3600}, NOW, None),
        ({"iat": NOW, "exp": NOW + 3600.5}, NOW, "BAD_LIFETIME"),
        ({"iat": NOW, "exp": NOW}, NOW, "BAD_LIFETIME"),
        ({"iat": NOW, "exp": NOW - 1}, NOW, "BAD_LIFETIME"),
        # What iat says that is long ago does not make it live longer.
        ({"iat": 1, "exp": NOW + 600}, NOW, "BAD_LIFETIME"),
        ({"iat": NOW - 3000, "exp": NOW + 600}, NOW, None),
        ({"exp": NOW + 600.75, "iat": NOW + 0.25}, NOW, None),
    ],
)
def test_times_to_the_second(changes: dict[str, float], now: float, expected: str | None) -> None:
    assert cause(now, **changes) == expected


def test_without_leeway_clocks_agree() -> None:
    rules = ClaimRules(issuer=ISSUER, audience=AUDIENCE, leeway=0)
    assert cause(NOW + 599.9, rules) is None
    assert cause(NOW + 600, rules) == "EXPIRED"
    assert cause(NOW - 0.1, rules) == "ISSUED_IN_FUTURE"


@pytest.mark.parametrize("value", [[], ["user"], ["user", "user"], ["x" * 64], [f"r{number}" for number in range(32)]])
def test_roles(value: list[str]) -> None:
    assert RULES.check(claims(NOW, roles=value), NOW).roles == frozenset(value)


def test_no_roles_are_none() -> None:
    assert RULES.check(claims(NOW, roles=None), NOW).roles == frozenset()


def test_roles_are_exact() -> None:
    assert RULES.check(claims(NOW, roles=["Admin", "admin ", "ADMIN"]), NOW).roles == {"Admin", "admin ", "ADMIN"}


@pytest.mark.parametrize(
    "value",
    ["admin", {"admin": True}, 1, True, [1], [None], [["admin"]], [""], ["x" * 65], ["a\0"], ["a\n"], ["r"] * 33],
    ids=repr,
)
def test_other_roles(value: Any) -> None:
    assert cause(roles=value) == "BAD_CLAIM"


@pytest.mark.parametrize(
    "rules",
    [
        {"issuer": ""},
        {"audience": ""},
        {"issuer": "a\nb"},
        {"leeway": 60.1},
        {"leeway": -1},
        {"leeway": math.nan},
        {"max_lifetime": 0},
        {"max_lifetime": 86_401},
        {"max_lifetime": math.nan},
    ],
    ids=repr,
)
def test_rules_have_bounds(rules: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError):
        ClaimRules(**({"issuer": ISSUER, "audience": AUDIENCE} | rules))


async def test_the_principal_says_what_the_claims_say() -> None:
    setup = Setup()
    text = json.dumps(setup.claims(sub="太郎", userId="01J", roles=["user", "admin"]), ensure_ascii=False).encode()
    principal = await setup.identity.identify(bearer(signed(HS256, {"alg": "HS256", "kid": "hs"}, text)))
    assert (principal.subject, principal.user_id, principal.issuer) == ("太郎", "01J", ISSUER)
    assert principal.roles == {"user", "admin"}
    assert principal.expires_at == setup.now + 600
    assert principal.actor != "太郎"
