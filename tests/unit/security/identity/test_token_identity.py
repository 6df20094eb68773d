"""Unit: the Authorization header, what is remembered of a token, and revocations."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import pytest

from kiseki.kernel.errors import DefinitionError, Unavailable
from kiseki.kernel.ports import Principal, Unauthenticated
from kiseki.security.identity.claims import Claims
from kiseki.security.identity.keys import SigningKey, VerificationKey, signing_key_from_secret
from kiseki.security.identity.revocations import MemoryRevocations, RevocationList
from kiseki.security.identity.token_cache import Known, TokenCache
from tests.support import Audited, ManualClock
from tests.unit.security.identity.token_parts import DIGESTS, HS256, ISSUER, SECRET, Setup, bearer, bearing

OTHER = signing_key_from_secret(SECRET[::-1], key_id="hs")


class Changing:
    """A KeySource whose keys a test changes, and that counts."""

    def __init__(self, key: SigningKey) -> None:
        self.generation = 0
        self.key = key
        self.asked = 0

    async def start(self) -> None: ...

    async def find(self, algorithm: str, key_id: str | None) -> Sequence[VerificationKey]:
        self.asked += 1
        return [self.key.verification]

    async def close(self) -> None: ...


async def test_no_credentials_are_no_error() -> None:
    setup = Setup()
    with pytest.raises(Unauthenticated) as refused:
        await setup.identity.identify(bearing())
    assert refused.value.error is None
    assert setup.audited.events == []


@pytest.mark.parametrize("scheme", [b"Bearer", b"bearer", b"BEARER", b"bEaReR"])
async def test_the_scheme_has_no_case(scheme: bytes) -> None:
    setup = Setup()
    assert (await setup.identity.identify(bearing(scheme + b" " + setup.token()))).subject == "u-1"


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b" ",
        b"Bearer",
        b"Bearer ",
        b"Bearer  TOKEN",
        b"Bearer\tTOKEN",
        b" Bearer TOKEN",
        b"Bearer TOKEN ",
        b"Bearer TOKEN x",
        b"Bearer TOKEN, Bearer TOKEN",
        b"Bearer TOKEN,Basic eDp5",
        b"Bearer token=TOKEN",
        b'Bearer "TOKEN"',
        b"Bearer =",
        b"Bearer TOKEN\0",
        b"Bearer TOKEN\r\nX: y",
        b"Bearer: TOKEN",
        b"Bearer TOK\xc3\xa9N",
        b"B\xc3\xa9arer TOKEN",
        b"\0",
        b"Bea rer=; TOKEN\x7f",
    ],
)
async def test_malformed_headers(header: bytes) -> None:
    setup = Setup()
    with pytest.raises(Unauthenticated) as refused:
        await setup.identity.identify(bearing(header.replace(b"TOKEN", setup.token())))
    assert refused.value.error == "invalid_request"
    assert [event.code for event in setup.audited.events] == ["MALFORMED_HEADER"]


async def test_two_headers_are_one_too_many() -> None:
    setup = Setup()
    good = b"Bearer " + setup.token()
    for headers in ((good, good), (good, b""), (b"Basic eDp5", good), (good,) * 50):
        with pytest.raises(Unauthenticated) as refused:
            await setup.identity.identify(bearing(*headers))
        assert refused.value.error == "invalid_request"


@pytest.mark.parametrize("header", [b"Basic eDp5", b"Digest a=b, c=d", b"Negotiate", b"bearerx TOKEN", b"TOKEN"])
async def test_other_schemes_are_no_credentials(header: bytes) -> None:
    """RFC 6750, section 3.1: no error code for a scheme that is not supported."""
    setup = Setup()
    with pytest.raises(Unauthenticated) as refused:
        await setup.identity.identify(bearing(header.replace(b"TOKEN", setup.token())))
    assert refused.value.error is None
    assert [event.code for event in setup.audited.events] == ["OTHER_SCHEME"]


async def test_the_actor_is_a_pseudonym() -> None:
    setup = Setup()
    principal = await setup.identity.identify(bearer(setup.token()))
    assert principal.actor == DIGESTS.pseudonym(ISSUER, "u-1")


async def test_a_token_is_verified_once() -> None:
    keys = Changing(HS256)
    setup = Setup(source=keys)
    token = setup.token()
    first = await setup.identity.identify(bearer(token))
    assert [await setup.identity.identify(bearer(token)) for _ in range(5)] == [first] * 5
    assert keys.asked == 1


async def test_what_is_remembered_ends_with_the_token() -> None:
    setup = Setup()
    token = setup.token()
    await setup.identity.identify(bearer(token))
    setup.clock.advance(609.9)
    await setup.identity.identify(bearer(token))
    setup.clock.advance(0.1)
    with pytest.raises(Unauthenticated):
        await setup.identity.identify(bearer(token))
    assert [event.code for event in setup.audited.events] == ["EXPIRED"]
    assert (setup.audited.events[0].subject, setup.audited.events[0].issuer) == ("u-1", ISSUER)


async def test_a_rotation_forgets_what_old_keys_verified() -> None:
    keys = Changing(HS256)
    setup = Setup(source=keys)
    token = setup.token()
    await setup.identity.identify(bearer(token))
    keys.key = OTHER
    keys.generation += 1
    with pytest.raises(Unauthenticated):
        await setup.identity.identify(bearer(token))
    assert (await setup.identity.identify(bearer(setup.token(OTHER)))).subject == "u-1"


async def test_a_rotation_during_a_verification_is_not_missed() -> None:
    class Rotating(Changing):
        async def find(self, algorithm: str, key_id: str | None) -> Sequence[VerificationKey]:
            found = await super().find(algorithm, key_id)
            self.key = OTHER
            self.generation += 1
            return found

    setup = Setup(source=Rotating(HS256))
    token = setup.token()
    await setup.identity.identify(bearer(token))
    with pytest.raises(Unauthenticated):
        await setup.identity.identify(bearer(token))


async def test_refused_tokens_are_not_remembered_and_change_nothing() -> None:
    keys = Changing(HS256)
    setup = Setup(source=keys)
    good, bad = setup.token(), setup.token(OTHER)
    await setup.identity.identify(bearer(good))
    for _ in range(200):
        with pytest.raises(Unauthenticated):
            await setup.identity.identify(bearer(bad))
    asked = keys.asked
    await setup.identity.identify(bearer(good))
    assert keys.asked == asked


async def test_a_token_is_not_kept() -> None:
    setup = Setup()
    token = setup.token()
    await setup.identity.identify(bearer(token))
    (kept,) = setup.identity._cache._known.items()
    assert kept[0] == sha256(token).digest()
    assert token.rpartition(b".")[2].decode() not in repr(kept)


def test_the_cache_is_bounded() -> None:
    cache = TokenCache(3)
    entry = _known(until=100.0)
    for number in range(10):
        cache.put(bytes([number]), entry, now=1.0, generation=0)
    assert len(cache) == 3
    assert cache.get(b"\0", now=1.0, generation=0) is None
    assert cache.get(b"\x09", now=1.0, generation=0) is entry
    assert cache.get(b"\x09", now=100.0, generation=0) is None


def test_what_has_passed_leaves_the_cache_unasked() -> None:
    cache = TokenCache(1000)
    for number in range(10):
        cache.put(bytes([number]), _known(until=100.0), now=1.0, generation=0)
    cache.put(b"new", _known(until=500.0), now=200.0, generation=0)
    assert len(cache) == 1


def test_of_another_generation_nothing_is_kept() -> None:
    cache = TokenCache(3)
    cache.put(b"a", _known(until=9.0), now=1.0, generation=0)
    assert cache.get(b"a", now=1.0, generation=1) is None
    cache.put(b"b", _known(until=9.0), now=1.0, generation=0)
    assert len(cache) == 0


def test_no_cache() -> None:
    cache = TokenCache(0)
    cache.put(b"a", _known(until=9.0), now=1.0, generation=0)
    assert len(cache) == 0
    with pytest.raises(DefinitionError):
        TokenCache(-1)


def _known(*, until: float) -> Known:
    claims = Claims(issuer="i", subject="s", user_id="s", roles=frozenset(), issued_at=1, expires_at=until)
    return Known(claims, Principal(subject="s", actor="a", roles=frozenset()), until)


# Revocation


async def revocable() -> tuple[Setup, RevocationList]:
    clock = ManualClock()
    clock.advance(1000)
    revocations = RevocationList(MemoryRevocations(), clock=clock, auditor=Audited(), max_lifetime=3600, leeway=10)
    await revocations.read()
    return Setup(revocations=revocations, clock=clock), revocations


async def test_a_revocation_holds_for_remembered_tokens() -> None:
    setup, revocations = await revocable()
    token, other = setup.token(), setup.token(sub="u-2")
    for each in (token, other):
        await setup.identity.identify(bearer(each))
    await revocations.revoke(ISSUER, "u-1")
    with pytest.raises(Unauthenticated) as refused:
        await setup.identity.identify(bearer(token))
    assert refused.value.error == "invalid_token"
    assert (await setup.identity.identify(bearer(other))).subject == "u-2"
    (event,) = setup.audited.events
    assert (event.code, event.subject, event.actor) == ("REVOKED", "u-1", DIGESTS.pseudonym(ISSUER, "u-1"))


async def test_a_revocation_covers_clocks_that_are_ahead() -> None:
    setup, revocations = await revocable()
    ahead = setup.token(iat=int(setup.now) + 10)
    await setup.identity.identify(bearer(ahead))
    await revocations.revoke(ISSUER, "u-1")
    with pytest.raises(Unauthenticated):
        await setup.identity.identify(bearer(ahead))
    setup.clock.advance(11)
    assert (await setup.identity.identify(bearer(setup.token()))).subject == "u-1"


async def test_a_subject_of_another_issuer_is_somebody_else() -> None:
    setup, revocations = await revocable()
    await revocations.revoke("https://other.example", "u-1")
    await setup.identity.identify(bearer(setup.token()))


async def test_when_nobody_knows_what_was_revoked_it_is_503() -> None:
    setup, revocations = await revocable()
    token = setup.token()
    await setup.identity.identify(bearer(token))
    setup.clock.advance(30)
    await setup.identity.identify(bearer(token))
    setup.clock.advance(1)
    for each in (token, setup.token()):
        with pytest.raises(Unavailable):
            await setup.identity.identify(bearer(each))
    await revocations.read()
    await setup.identity.identify(bearer(token))
