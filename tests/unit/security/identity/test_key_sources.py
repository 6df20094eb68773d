"""Unit: keys that are read again and again: rotations, floods of unknown keys, sources that are dead."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from kiseki.kernel.errors import DefinitionError
from kiseki.security.identity.key_sources import FixedKeys, KeysUnavailable, RefreshedKeys
from kiseki.security.identity.keys import KeyRefused, KeySet, SigningKey, signing_key_from_secret
from tests.support import Audited, ManualClock
from tests.unit.security.identity.token_parts import EDDSA, ES256, HS256


class Loader:
    """Gives what a test says, when it says so."""

    name = "the key set of a test"

    def __init__(self, *keys: SigningKey) -> None:
        self.keys: KeySet | None = KeySet(key.verification for key in keys)
        self.problem: Exception | None = None
        self.calls = 0
        self.open = asyncio.Event()
        self.open.set()

    async def load(self) -> KeySet | None:
        self.calls += 1
        await self.open.wait()
        if self.problem is not None:
            raise self.problem
        return self.keys

    def give(self, *keys: SigningKey) -> None:
        self.keys = KeySet(key.verification for key in keys)


class World:
    """Keys that are refreshed by hand: the interval is long, and the clock stands."""

    def __init__(self, loader: Loader, *, required: bool = False, wait: float = 1.0, interval: float = 300.0) -> None:
        self.clock = ManualClock()
        self.audited = Audited()
        self.loader = loader
        self.keys = RefreshedKeys(
            loader, clock=self.clock, auditor=self.audited, required=required, wait=wait, interval=interval
        )


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World(Loader(ES256))
    await made.keys.start()
    yield made
    await made.keys.close()


async def test_a_known_key_asks_for_nothing(world: World) -> None:
    for _ in range(100):
        assert await world.keys.find("ES256", "es") == (ES256.verification,)
    assert world.loader.calls == 1
    assert world.audited.kinds() == ["jwks.refreshed"]


async def test_a_new_key_works_at_once_when_it_is_asked_for(world: World) -> None:
    before = world.keys.generation
    world.loader.give(ES256, EDDSA)
    world.clock.advance(10)
    assert await world.keys.find("EdDSA", "ed") == (EDDSA.verification,)
    assert world.keys.generation == before + 1


async def test_a_withdrawn_key_goes(world: World) -> None:
    world.loader.give(EDDSA)
    world.clock.advance(10)
    await world.keys.find("EdDSA", "ed")
    assert await world.keys.find("ES256", "es") == ()


async def test_keys_are_read_every_interval_without_being_asked() -> None:
    loader = Loader(ES256)
    keys = RefreshedKeys(loader, clock=ManualClock(), auditor=Audited(), interval=0.01, minimum=0.01)
    await keys.start()
    async with asyncio.timeout(10):
        for problem in (KeysUnavailable("gone"), ZeroDivisionError()):
            loader.problem = problem
            calls = loader.calls
            while loader.calls < calls + 3:
                await asyncio.sleep(0.001)
        loader.problem = None
        loader.give(EDDSA)
        # Without a key id nothing is read for a token.
        while not await keys.find("EdDSA", None):
            await asyncio.sleep(0.001)
    await keys.close()


async def test_the_same_keys_are_no_rotation(world: World) -> None:
    before = world.keys.generation
    for _ in range(3):
        world.loader.give(ES256)
        world.clock.advance(10)
        await world.keys.find("ES256", "other")
    assert world.loader.calls == 4
    assert world.keys.generation == before


async def test_a_flood_of_unknown_keys_is_one_read(world: World) -> None:
    world.clock.advance(10)
    world.loader.open.clear()
    flood = [asyncio.create_task(world.keys.find("ES256", secrets.token_hex(8))) for _ in range(2000)]
    await asyncio.sleep(0)
    world.loader.open.set()
    assert set(await asyncio.gather(*flood)) == {()}
    for _ in range(2000):
        assert await world.keys.find("ES256", secrets.token_hex(8)) == ()
    assert world.loader.calls == 2
    world.clock.advance(9.9)
    await world.keys.find("ES256", "x")
    assert world.loader.calls == 2
    world.clock.advance(0.1)
    await world.keys.find("ES256", "x")
    assert world.loader.calls == 3


async def test_tokens_without_a_key_id_cause_no_reads(world: World) -> None:
    world.clock.advance(100)
    for _ in range(100):
        await world.keys.find("RS256", None)
    assert world.loader.calls == 1


async def test_who_goes_away_does_not_end_the_read_of_others(world: World) -> None:
    world.clock.advance(10)
    world.loader.open.clear()
    world.loader.give(EDDSA)
    first = asyncio.create_task(world.keys.find("EdDSA", "ed"))
    second = asyncio.create_task(world.keys.find("EdDSA", "ed"))
    await asyncio.sleep(0)
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    world.loader.open.set()
    assert await second == (EDDSA.verification,)


async def test_a_source_that_hangs_holds_nobody_for_long() -> None:
    world = World(Loader(ES256), wait=0.05)
    await world.keys.start()
    world.clock.advance(10)
    world.loader.open.clear()
    async with asyncio.timeout(5):
        assert await world.keys.find("ES256", "unknown") == ()
        assert await world.keys.find("ES256", "es") == (ES256.verification,)
    world.loader.open.set()
    await world.keys.close()


@pytest.mark.parametrize(
    "problem", [KeysUnavailable("gone"), KeyRefused("rubbish"), ZeroDivisionError(), MemoryError(), OSError("x")]
)
async def test_the_last_good_keys_stay(world: World, problem: Exception, caplog: pytest.LogCaptureFixture) -> None:
    world.loader.problem = problem
    for _ in range(5):
        world.clock.advance(10)
        assert await world.keys.find("ES256", "unknown") == ()
        assert await world.keys.find("ES256", "es") == (ES256.verification,)
    assert world.loader.calls == 6
    assert world.audited.kinds() == ["jwks.refreshed", "jwks.failed"]
    assert len(caplog.records) == 1
    world.loader.problem = None
    world.loader.give(EDDSA)
    world.clock.advance(10)
    assert await world.keys.find("EdDSA", "ed") == (EDDSA.verification,)


async def test_the_last_good_keys_do_not_stay_for_ever(world: World) -> None:
    world.loader.problem = KeysUnavailable("gone")
    world.clock.advance(86_400)
    assert await world.keys.find("ES256", "es") == (ES256.verification,)
    world.clock.advance(1)
    with pytest.raises(KeysUnavailable):
        await world.keys.find("ES256", "es")
    world.loader.problem = None
    world.clock.advance(10)
    assert await world.keys.find("ES256", "es") == (ES256.verification,)


async def test_reads_that_find_nothing_new_keep_keys_young(world: World) -> None:
    world.loader.keys = None
    for _ in range(5):
        world.clock.advance(80_000)
        await world.keys.find("ES256", "unknown")
        assert await world.keys.find("ES256", "es") == (ES256.verification,)


async def test_without_any_keys_it_is_503_and_then_it_heals() -> None:
    loader = Loader(ES256)
    loader.problem = KeysUnavailable("gone")
    world = World(loader)
    await world.keys.start()
    for key_id in ("es", None):
        with pytest.raises(KeysUnavailable):
            await world.keys.find("ES256", key_id)
    assert loader.calls == 1
    loader.problem = None
    world.clock.advance(10)
    assert await world.keys.find("ES256", "es") == (ES256.verification,)
    await world.keys.close()


async def test_keys_that_are_required_are_there_or_the_start_fails() -> None:
    for problem in (KeysUnavailable("gone"), KeyRefused("rubbish")):
        loader = Loader(ES256)
        loader.problem = problem
        with pytest.raises(type(problem), match=str(problem)):
            await World(loader, required=True).keys.start()


async def test_another_secret_under_the_same_id_is_a_rotation() -> None:
    world = World(Loader(HS256))
    await world.keys.start()
    before = world.keys.generation
    other = signing_key_from_secret(secrets.token_bytes(32), key_id="hs")
    world.loader.give(other)
    world.clock.advance(10)
    await world.keys.find("HS256", "unknown")
    assert await world.keys.find("HS256", "hs") == (other.verification,)
    assert world.keys.generation > before
    await world.keys.close()


async def test_closing_ends_what_is_under_way() -> None:
    world = World(Loader(ES256))
    await world.keys.start()
    world.clock.advance(10)
    world.loader.open.clear()
    waiting = asyncio.create_task(world.keys.find("ES256", "unknown"))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await world.keys.close()
        assert await waiting == ()
    await world.keys.close()


def test_times_have_an_order() -> None:
    loader = Loader(ES256)
    for times in ({"minimum": 0.0}, {"minimum": 400.0}, {"interval": 1e6}, {"wait": 11.0}, {"wait": -1.0}):
        with pytest.raises(DefinitionError):
            RefreshedKeys(loader, clock=ManualClock(), auditor=Audited(), **times)  # type: ignore[arg-type]


async def test_fixed_keys() -> None:
    keys = FixedKeys([ES256.verification])
    await keys.start()
    assert await keys.find("ES256", "es") == (ES256.verification,)
    assert await keys.find("ES256", None) == [ES256.verification]
    assert await keys.find("ES256", "x") == ()
    await keys.close()
    with pytest.raises(KeyRefused):
        FixedKeys([])
