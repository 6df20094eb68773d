"""The Protector: whose keys there are, whose are gone, and how long that may take to be known."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from kiseki.kernel.errors import Unavailable
from kiseki.kernel.personal import ERASED, Erased
from kiseki.kernel.ports import Protector, SubjectCipher, SubjectErased, SubjectKeyMissing
from kiseki.kernel.text import InvalidValue
from kiseki.security.key_store import DIGEST_SUBJECT, MemoryKeyStore
from kiseki.security.master_key import LocalMasterKey, MasterKeyMissing
from kiseki.security.protector import KeyProtector
from kiseki.security.rewrap import rewrap
from tests.unit.security.fakes import MASTER, FakeClock, WatchedMasterKey, WatchedStore, protector

HANAKO, TARO = "UserAccount-hanako", "UserAccount-taro"
HERE = b"here"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store() -> WatchedStore:
    return WatchedStore()


@pytest.fixture
def keys(store: WatchedStore, clock: FakeClock) -> KeyProtector:
    return protector(store, clock)


@pytest.fixture
def elsewhere(store: WatchedStore, clock: FakeClock) -> KeyProtector:
    """Another process on the same store."""
    return protector(store, clock)


def at_once(call: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that does not suspend."""
    with pytest.raises(StopIteration) as ended:
        call.send(None)
    return ended.value.value


def opened(cipher: SubjectCipher | Erased | None, sealed: str) -> bytes:
    assert cipher is not None
    assert not isinstance(cipher, Erased)
    return cipher.open(sealed, HERE)


async def fail() -> None:
    raise Unavailable("the disk is full")


class Gate:
    """Holds up a call until the test lets it go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self) -> None:
        self.reached.set()
        await self.open.wait()


# Keys


async def test_a_new_subject_gets_a_key_that_every_process_reads(keys: Protector, elsewhere: Protector) -> None:
    sealed = (await keys.ensure([HANAKO]))[HANAKO].seal(b"Hanako", HERE)
    assert opened((await elsewhere.ciphers([HANAKO]))[HANAKO], sealed) == b"Hanako"
    assert opened((await elsewhere.ensure([HANAKO]))[HANAKO], sealed) == b"Hanako"


async def test_a_key_is_in_the_store_before_ensure_returns(keys: Protector, store: WatchedStore) -> None:
    gate = Gate()
    store.after["insert"] = gate
    ensuring = asyncio.create_task(keys.ensure([HANAKO]))
    await gate.reached.wait()
    assert not ensuring.done()
    gate.open.set()
    await ensuring
    assert HANAKO in await store.load([HANAKO])


async def test_unknown_subjects_are_left_out_and_not_remembered(keys: Protector, elsewhere: Protector) -> None:
    await keys.ensure([HANAKO])
    assert set(await keys.ciphers([HANAKO, TARO])) == {HANAKO}
    await elsewhere.ensure([TARO])
    assert set(await keys.ciphers([HANAKO, TARO])) == {HANAKO, TARO}
    assert await keys.ciphers([]) == {}
    assert await keys.ensure([]) == {}


async def test_every_subject_has_a_key_of_its_own(keys: Protector) -> None:
    ciphers = await keys.ensure([HANAKO, TARO, HANAKO])
    sealed = {subject: cipher.seal(b"name", HERE) for subject, cipher in ciphers.items()}
    assert sealed[HANAKO].partition(".")[0] != sealed[TARO].partition(".")[0]
    with pytest.raises(SubjectKeyMissing):
        ciphers[TARO].open(sealed[HANAKO], HERE)


async def test_of_two_processes_the_first_key_wins(store: WatchedStore, keys: Protector, elsewhere: Protector) -> None:
    """Both have read that the subject is unknown; then both insert."""
    gate = Gate()
    store.before["insert"] = gate
    slow = asyncio.create_task(keys.ensure([HANAKO]))
    await gate.reached.wait()
    del store.before["insert"]
    sealed = (await elsewhere.ensure([HANAKO]))[HANAKO].seal(b"Hanako", HERE)
    gate.open.set()
    assert opened((await slow)[HANAKO], sealed) == b"Hanako"


async def test_concurrent_calls_for_one_new_subject_make_one_key(store: WatchedStore, clock: FakeClock) -> None:
    master = WatchedMasterKey()
    keys = protector(store, clock, wrapper=master)
    found = await asyncio.gather(*(keys.ensure([HANAKO]) for _ in range(50)))
    assert len({id(each[HANAKO]) for each in found}) == 1
    assert (master.wraps, store.calls.count("insert"), store.calls.count("load")) == (1, 1, 1)


async def test_a_cancelled_caller_does_not_take_the_key_from_the_others(store: WatchedStore, keys: Protector) -> None:
    gate = Gate()
    store.before["insert"] = gate
    first = asyncio.create_task(keys.ensure([HANAKO]))
    await gate.reached.wait()
    second = asyncio.create_task(keys.ensure([HANAKO]))
    await asyncio.sleep(0)
    first.cancel()
    gate.open.set()
    assert set(await second) == {HANAKO}
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_store_that_fails_is_asked_again(store: WatchedStore, keys: Protector) -> None:
    for step in ("load", "insert"):
        store.before[step] = fail
        for _ in range(2):
            with pytest.raises(Unavailable, match="disk is full"):
                await keys.ensure([HANAKO])
        del store.before[step]
    assert set(await keys.ensure([HANAKO])) == {HANAKO}


@pytest.mark.parametrize("subject", [DIGEST_SUBJECT, "", "UserAccount", "UserAccount-", "UserAccount-a\n"])
async def test_only_streams_are_subjects(keys: Protector, subject: str) -> None:
    with pytest.raises(InvalidValue):
        await keys.ensure([subject])
    with pytest.raises(InvalidValue):
        await keys.erase(subject)


# The cache


async def test_what_is_cached_costs_no_suspension_and_no_store(keys: Protector, store: WatchedStore) -> None:
    await keys.ensure([HANAKO, TARO])
    await keys.erase(TARO)
    calls = list(store.calls)
    assert at_once(keys.ciphers([HANAKO, TARO]))[TARO] == ERASED
    assert set(at_once(keys.ensure([HANAKO]))) == {HANAKO}
    assert store.calls == calls


async def test_keys_live_in_memory_for_the_time_to_live(store: WatchedStore, clock: FakeClock) -> None:
    master = WatchedMasterKey()
    keys = protector(store, clock, wrapper=master, ttl=300)
    await keys.ensure([HANAKO])
    clock.advance(299.9)
    await keys.ciphers([HANAKO])
    assert master.unwraps == 0
    clock.advance(0.1)
    await keys.ciphers([HANAKO])
    assert master.unwraps == 1


async def test_the_cache_is_bounded(store: WatchedStore, clock: FakeClock) -> None:
    master = WatchedMasterKey()
    keys = protector(store, clock, wrapper=master, capacity=10)
    subjects = [f"UserAccount-{number}" for number in range(30)]
    assert set(await keys.ensure(subjects)) == set(subjects), "also more than fit are found"
    await keys.ciphers(subjects[-10:])
    assert master.unwraps == 0
    await keys.ciphers(subjects[:10])
    assert master.unwraps == 10


# Erasure


async def test_an_erased_subject_is_erased_at_once_and_for_ever(keys: Protector, clock: FakeClock) -> None:
    await keys.ensure([HANAKO, TARO])
    await keys.erase(HANAKO)
    await keys.erase(HANAKO)
    for seconds in (0, 0.5, 299, 10_000):
        clock.advance(seconds)
        found = await keys.ciphers([HANAKO, TARO])
        assert found[HANAKO] == ERASED
        assert found[TARO] != ERASED
        with pytest.raises(SubjectErased, match=HANAKO):
            await keys.ensure([TARO, HANAKO])


async def test_a_subject_can_be_erased_before_it_has_keys(keys: Protector, store: WatchedStore) -> None:
    await keys.erase(HANAKO)
    with pytest.raises(SubjectErased):
        await keys.ensure([HANAKO])
    assert "insert" not in store.calls


async def test_another_process_hears_within_a_second(keys: Protector, elsewhere: Protector, clock: FakeClock) -> None:
    await keys.ensure([HANAKO])
    await elsewhere.ensure([HANAKO])
    await keys.erase(HANAKO)
    clock.advance(1)
    assert (await elsewhere.ciphers([HANAKO]))[HANAKO] == ERASED
    with pytest.raises(SubjectErased):
        await elsewhere.ensure([HANAKO])


async def test_an_idle_process_hears_before_it_serves_again(
    keys: Protector, elsewhere: Protector, clock: FakeClock
) -> None:
    await elsewhere.ensure([HANAKO])
    clock.advance(100)
    await keys.erase(HANAKO)
    clock.advance(100)
    assert (await elsewhere.ciphers([HANAKO]))[HANAKO] == ERASED


async def test_the_store_is_asked_once_a_second_at_most(keys: Protector, store: WatchedStore, clock: FakeClock) -> None:
    await keys.ensure([HANAKO])
    for _ in range(100):
        clock.advance(0.1)
        await keys.ciphers([HANAKO])
    assert 10 <= store.calls.count("erasures") <= 11


async def test_when_the_store_can_not_be_asked_keys_serve_for_the_time_to_live(
    store: WatchedStore, elsewhere: Protector, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    keys = protector(store, clock, ttl=300)
    await keys.ensure([HANAKO])
    await elsewhere.erase(HANAKO)
    store.before["erasures"] = fail
    clock.advance(299)
    assert (await keys.ciphers([HANAKO]))[HANAKO] != ERASED
    assert "can't be heard of" in caplog.text
    clock.advance(1)
    assert (await keys.ciphers([HANAKO]))[HANAKO] == ERASED


async def test_nothing_is_remembered_before_erasures_can_be_heard_of(
    store: WatchedStore, keys: Protector, elsewhere: Protector, clock: FakeClock
) -> None:
    await elsewhere.ensure([HANAKO])
    store.before["erasures"] = fail
    for _ in range(2):
        with pytest.raises(Unavailable):
            await keys.ciphers([HANAKO])
    await elsewhere.erase(HANAKO)
    del store.before["erasures"]
    assert (await keys.ciphers([HANAKO]))[HANAKO] == ERASED


async def test_keys_read_before_an_erasure_are_not_remembered_after_it(store: WatchedStore, keys: Protector) -> None:
    await keys.ensure([HANAKO])
    reader = protector(store, FakeClock())
    gate = Gate()
    store.after["load"] = gate
    loading = asyncio.create_task(reader.ciphers([HANAKO]))
    await gate.reached.wait()
    await reader.erase(HANAKO)
    gate.open.set()
    await loading  # it asked before the erasure: either answer is right
    assert (await reader.ciphers([HANAKO]))[HANAKO] == ERASED


async def test_a_key_made_before_an_erasure_is_not_given_out_after_it(store: WatchedStore, keys: Protector) -> None:
    gate = Gate()
    store.after["insert"] = gate
    making = asyncio.create_task(keys.ensure([HANAKO]))
    await gate.reached.wait()
    await keys.erase(HANAKO)
    with pytest.raises(SubjectErased):
        await keys.ensure([HANAKO])
    gate.open.set()
    await making
    with pytest.raises(SubjectErased):
        await keys.ensure([HANAKO])


@pytest.mark.parametrize("step", ["load", "insert"])
async def test_nobody_joins_work_that_began_before_an_erasure(store: WatchedStore, clock: FakeClock, step: str) -> None:
    """Also when the erasure itself has left the cache already."""
    keys = protector(store, clock, capacity=0)
    if step == "load":
        await keys.ensure([HANAKO])
    find: Callable[[list[str]], Awaitable[Any]] = keys.ciphers if step == "load" else keys.ensure
    gate = Gate()
    store.after[step] = gate
    before = asyncio.ensure_future(find([HANAKO]))
    await gate.reached.wait()
    del store.after[step]
    await keys.erase(HANAKO)
    if step == "load":
        assert await find([HANAKO]) == {HANAKO: ERASED}
    else:
        with pytest.raises(SubjectErased):
            await find([HANAKO])
    gate.open.set()
    await before


async def test_an_erasure_that_failed_drops_the_key_from_memory(store: WatchedStore, keys: Protector) -> None:
    """It may have reached the disk: only the store knows."""
    await keys.ensure([HANAKO])
    store.after["erase"] = fail
    with pytest.raises(Unavailable):
        await keys.erase(HANAKO)
    assert (await keys.ciphers([HANAKO]))[HANAKO] == ERASED


async def test_listeners_hear_of_erasures_here_and_elsewhere(
    store: WatchedStore, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    here, there = protector(store, clock), protector(store, clock)
    heard: list[str] = []

    def broken(subject: str) -> None:
        raise RuntimeError("no")

    here.on_erase(broken)
    here.on_erase(lambda subject: heard.append(f"here {subject}"))
    there.on_erase(lambda subject: heard.append(f"there {subject}"))
    await there.hear()
    await here.erase(HANAKO)
    assert heard == [f"here {HANAKO}"]
    assert "a listener failed" in caplog.text
    await there.hear()
    assert heard == [f"here {HANAKO}", f"there {HANAKO}"]
    await there.hear()
    assert len(heard) == 2


async def test_a_second_erasure_between_two_hearings_is_heard_too(store: WatchedStore, clock: FakeClock) -> None:
    here, there = protector(store, clock), protector(store, clock)
    await there.ensure([HANAKO, TARO])
    heard: list[str] = []
    there.on_erase(heard.append)
    await here.erase(HANAKO)
    await there.hear()
    await here.erase(TARO)
    await there.hear()
    assert heard == [HANAKO, TARO]


# Digests and the master key


async def open_protector(store: MemoryKeyStore, wrapper: LocalMasterKey) -> KeyProtector:
    return await KeyProtector.open(store=store, wrapper=wrapper, clock=FakeClock())


async def test_digests_are_the_same_in_every_process_and_after_a_restart() -> None:
    store, master = MemoryKeyStore(), LocalMasterKey(MASTER)
    first, second = await asyncio.gather(open_protector(store, master), open_protector(store, master))
    assert first.digest("claim", "a") == second.digest("claim", "a")
    assert first.pseudonym("issuer", "a") == second.pseudonym("issuer", "a")
    assert (await open_protector(store, master)).digest("claim", "a") == first.digest("claim", "a")
    assert (await open_protector(MemoryKeyStore(), master)).digest("claim", "a") != first.digest("claim", "a")


async def test_of_two_first_starts_one_root_wins() -> None:
    store, gate = WatchedStore(), Gate()
    store.before["insert"] = gate
    slow = asyncio.create_task(open_protector(store, LocalMasterKey(MASTER)))
    await gate.reached.wait()
    del store.before["insert"]
    fast = await open_protector(store, LocalMasterKey(MASTER))
    gate.open.set()
    assert (await slow).digest("claim", "a") == fast.digest("claim", "a")


async def test_rotating_the_master_key_changes_nothing_that_is_stored() -> None:
    store, old, new = MemoryKeyStore(), LocalMasterKey(MASTER), bytes(range(32, 64))
    before = await open_protector(store, old)
    sealed = (await before.ensure([HANAKO]))[HANAKO].seal(b"Hanako", HERE)
    await before.ensure([f"UserAccount-{number}" for number in range(20)])
    await before.erase(TARO)
    both = LocalMasterKey(new, previous=[MASTER])
    assert await rewrap(store, both, page=4) == 22, "twenty-one subjects and the root of digests"
    assert await rewrap(store, both) == 0
    after = await open_protector(store, LocalMasterKey(new))
    found = await after.ciphers([HANAKO, TARO])
    assert opened(found[HANAKO], sealed) == b"Hanako"
    assert found[TARO] == ERASED
    assert after.digest("claim", "a") == before.digest("claim", "a")
    assert after.pseudonym("issuer", "a") == before.pseudonym("issuer", "a")


async def test_a_store_of_another_master_key_is_noticed_at_the_start() -> None:
    store = MemoryKeyStore()
    await open_protector(store, LocalMasterKey(MASTER))
    with pytest.raises(MasterKeyMissing):
        await open_protector(store, LocalMasterKey(bytes(range(32, 64))))


async def test_secrets_are_in_no_log_and_no_repr(
    store: WatchedStore, keys: KeyProtector, elsewhere: KeyProtector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await keys.ensure([HANAKO])
    (key,) = (await store.load([HANAKO]))[HANAKO].keys
    plain = await LocalMasterKey(MASTER).unwrap(key.wrapped, f"subject-key|{HANAKO}|{key.key_id}".encode())
    store.before["erase"] = fail
    with pytest.raises(Unavailable) as raised:
        await keys.erase(HANAKO)
    shown = caplog.text + repr(key) + repr(keys) + repr(await store.load([HANAKO])) + repr(raised.value)
    for secret in (plain, key.wrapped, MASTER):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown
