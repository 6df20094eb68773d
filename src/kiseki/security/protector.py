"""`KeyProtector`: implements the kernel's Protector on a key store and a master key."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import Final, Self, TypeAlias

from kiseki.kernel.erasure import ErasureLog, NoErasureLog, PlannedErasure
from kiseki.kernel.errors import Unavailable
from kiseki.kernel.personal import ERASED, Erased
from kiseki.kernel.ports import Clock, SubjectCipher, SubjectErased
from kiseki.kernel.streams import STREAM
from kiseki.kernel.text import InvalidValue
from kiseki.security.cipher import DATA_KEY_BYTES, DataKeyCipher
from kiseki.security.digests import ROOT_BYTES, Digests
from kiseki.security.grouped import each
from kiseki.security.key_cache import CipherCache
from kiseki.security.key_store import DIGEST_SUBJECT, KeyStore, SubjectKeys, WrappedKey, wrap_context
from kiseki.security.master_key import KeyWrapper

__all__ = ["KeyProtector"]

_Known: TypeAlias = Mapping[str, SubjectCipher | Erased]
_Flights: TypeAlias = dict[str, asyncio.Task[_Known]]

_Work: TypeAlias = Callable[[list[str]], Coroutine[None, None, _Known]]

_KEY_ID_BYTES: Final = 6
_log = logging.getLogger(__name__)


class KeyProtector:
    """Keeps the data keys of subjects (kernel.ports.Protector); belongs to one event loop.

    Every subject has data keys of its own, random, wrapped by the master key before they reach the key store.
    Unwrapped ones stay in memory for at most `ttl` seconds. An erasure counts at once in this process; other processes
    on the same store learn of it when they next use keys, at most `hear_every` seconds after they last asked
    the store, and after `ttl` seconds even when it can't be asked.
    """

    def __init__(
        self,
        *,
        store: KeyStore,
        wrapper: KeyWrapper,
        digests: Digests,
        clock: Clock,
        capacity: int = 10_000,
        ttl: float = 300.0,
        hear_every: float = 1.0,
        erasure_log: ErasureLog | None = None,
    ) -> None:
        """`capacity` subjects are remembered; `ttl` and `hear_every` are seconds. `erasure_log` hears of every erasure
        before its keys are destroyed; it may be given later, since a ledger needs what is in the key store."""
        self._store = store
        self.erasure_log: ErasureLog = erasure_log or NoErasureLog()
        self._wrapper = wrapper
        self._digests = digests
        self._clock = clock
        self._cache = CipherCache(capacity=capacity, ttl=ttl)
        self._loads: _Flights = {}
        self._creations: _Flights = {}
        self._erasures = 0
        """Counts what was heard, so that keys read before an erasure are not remembered after it."""
        self._mark: int | None = None
        self._hear_every = hear_every
        self._hear_at = float("-inf")
        self._callbacks: list[Callable[[str], None]] = []

    @classmethod
    async def open(
        cls,
        *,
        store: KeyStore,
        wrapper: KeyWrapper,
        clock: Clock,
        capacity: int = 10_000,
        ttl: float = 300.0,
        hear_every: float = 1.0,
    ) -> Self:
        """A protector with the key store's own root of digests, which is made on first use.

        Raises MasterKeyMissing when the store belongs to another master key, WrappedKeyBroken, Unavailable.
        """
        return cls(
            store=store,
            wrapper=wrapper,
            digests=Digests(await _digest_root(store, wrapper)),
            clock=clock,
            capacity=capacity,
            ttl=ttl,
            hear_every=hear_every,
        )

    async def ciphers(self, subjects: Collection[str]) -> dict[str, SubjectCipher | Erased]:
        """As Protector. Does not suspend while everything is in the cache, except to hear of erasures."""
        return await self._find(subjects, self._loads, self._load)

    async def ensure(self, subjects: Collection[str]) -> dict[str, SubjectCipher]:
        """As Protector. Concurrent calls for one new subject make one key; many new subjects share durable writes."""
        alive: dict[str, SubjectCipher] = {}
        for subject, cipher in (await self._find(subjects, self._creations, self._load_or_create)).items():
            if isinstance(cipher, Erased):
                raise SubjectErased(f"{subject} was erased")
            alive[subject] = cipher
        return alive

    async def erase(self, subject: str) -> None:
        """As Protector. Also for a subject without keys: it never gets any. The log of erasures knows it before.

        Raises InvalidValue for what is no stream name.
        """
        _check(subject)
        await self.erasure_log.begin(PlannedErasure(subject=subject, stream=""))
        await self.destroy(subject)
        await self.erasure_log.finish(subject)

    async def destroy(self, subject: str) -> None:
        """As `erase`, for a subject that is in the log of erasures already: what replays it uses this."""
        _check(subject)
        try:
            await self._store.erase(subject, self._clock.now())
        finally:
            self._forget(subject)  # even when it failed: it may have been too late to fail
        self._erased(subject)

    def on_erase(self, callback: Callable[[str], None]) -> None:
        """Calls back with each subject whose erasure this process learns of, so that others drop what they hold of it.

        An erasure made in this process may be told twice. What a callback raises is logged.
        """
        self._callbacks.append(callback)

    async def hear(self) -> None:
        """Asks the key store for erasures by other processes. `ciphers` and `ensure` do so by themselves; a process
        that holds personal data without using keys calls this. Raises Unavailable."""
        self._cache.expire(self._clock.monotonic())
        heard = await self._store.erasures(self._mark)
        if self._mark is None or heard.mark > self._mark:
            self._mark = heard.mark
        for subject in heard.subjects:
            self._forget(subject)
            self._erased(subject)

    @property
    def digests(self) -> Digests:
        """The keyed hashes of this key store; for the ledger of erasures."""
        return self._digests

    def digest(self, scope: str, value: str) -> str:
        """As Protector: HMAC-SHA-256, 64 hex digits."""
        return self._digests.digest(scope, value)

    def pseudonym(self, issuer: str, subject: str) -> str:
        """What stands for an actor in events and logs, the same for the same issuer and subject: 32 hex digits."""
        return self._digests.pseudonym(issuer, subject)

    async def _find(
        self, subjects: Collection[str], flights: _Flights, work: _Work
    ) -> dict[str, SubjectCipher | Erased]:
        now = self._clock.monotonic()
        if now >= self._hear_at:
            await self._hear_again(now)
        found: dict[str, SubjectCipher | Erased] = {}
        missing: list[str] = []
        for subject in subjects:
            cipher = self._cache.get(subject, now)
            if cipher is None:
                missing.append(subject)
            else:
                found[subject] = cipher
        if missing:
            found.update(await _together(flights, missing, work))
        return found

    async def _hear_again(self, now: float) -> None:
        self._hear_at = now + self._hear_every
        try:
            await self.hear()
        except Unavailable as problem:
            if self._mark is None:  # nothing may be remembered before there is a mark to hear from
                self._hear_at = now
                raise
            _log.warning("erasures by other processes can't be heard of now: %s", problem)

    def _forget(self, subject: str) -> None:
        """What is known or being read of a subject must not be used again."""
        self._erasures += 1
        self._cache.drop(subject)
        self._loads.pop(subject, None)
        self._creations.pop(subject, None)

    def _erased(self, subject: str) -> None:
        self._cache.put(subject, ERASED, self._clock.monotonic())
        for callback in self._callbacks:
            try:
                callback(subject)
            except Exception:  # noqa: BLE001 - the keys are destroyed, whatever others make of it; and each has to hear
                _log.exception("a listener failed on the erasure of %s", subject)

    async def _load(self, subjects: list[str]) -> _Known:
        now, erasures = self._clock.monotonic(), self._erasures
        stored = await self._store.load(subjects)
        ciphers = await each(lambda found: self._read(*found), list(stored.items()))
        return self._remember(dict(zip(stored, ciphers, strict=True)), now, erasures)

    async def _load_or_create(self, subjects: list[str]) -> _Known:
        known = await self._load(subjects)
        unknown = [subject for subject in subjects if subject not in known]
        return {**known, **await self._create(unknown)} if unknown else known

    async def _create(self, subjects: list[str]) -> _Known:
        now, erasures = self._clock.monotonic(), self._erasures
        for subject in subjects:
            _check(subject)
        made = {subject: _new_key() for subject in subjects}
        wrapped = await each(lambda new: _wrap(self._wrapper, new[0], *new[1]), list(made.items()))
        stored = await self._store.insert(dict(zip(made, wrapped, strict=True)))
        known: dict[str, SubjectCipher | Erased] = {}
        for subject, (key_id, key) in made.items():
            there = stored[subject]
            if [each.key_id for each in there.keys] == [key_id]:
                known[subject] = DataKeyCipher(subject, {key_id: key})
            else:  # another process was first, or it is erased
                known[subject] = await self._read(subject, there)
        return self._remember(known, now, erasures)

    async def _read(self, subject: str, stored: SubjectKeys) -> SubjectCipher | Erased:
        if stored.erased_at is not None:
            return ERASED
        return DataKeyCipher(subject, await _unwrap(self._wrapper, subject, stored.keys))

    def _remember(self, known: _Known, read_at: float, erasures: int) -> _Known:
        if erasures == self._erasures:
            for subject, cipher in known.items():
                self._cache.put(subject, cipher, read_at)
        return known


async def _together(flights: _Flights, subjects: Sequence[str], work: _Work) -> dict[str, SubjectCipher | Erased]:
    """Works for the subjects that nobody works for yet, and waits for all. A caller that is cancelled leaves the work
    to the others."""
    new = [subject for subject in dict.fromkeys(subjects) if subject not in flights]
    if new:
        task = asyncio.create_task(work(new), name="subject keys")
        flights.update(dict.fromkeys(new, task))
        task.add_done_callback(partial(_land, flights, new))
    found: dict[str, SubjectCipher | Erased] = {}
    for task in {flights[subject] for subject in subjects}:
        found.update(await asyncio.shield(task))
    return {subject: found[subject] for subject in subjects if subject in found}


def _land(flights: _Flights, subjects: Iterable[str], task: asyncio.Task[_Known]) -> None:
    for subject in subjects:
        if flights.get(subject) is task:
            del flights[subject]
    if not task.cancelled():
        task.exception()  # seen, also when every caller was cancelled


def _check(subject: str) -> None:
    """Other names than those of streams are the key store's own."""
    if not STREAM.fullmatch(subject):
        raise InvalidValue("INVALID_ID", "a subject is a full stream name")


def _new_key(size: int = DATA_KEY_BYTES) -> tuple[str, bytes]:
    return secrets.token_urlsafe(_KEY_ID_BYTES), os.urandom(size)


async def _wrap(wrapper: KeyWrapper, subject: str, key_id: str, key: bytes) -> WrappedKey:
    return WrappedKey(key_id, await wrapper.wrap(key, wrap_context(subject, key_id)))


async def _unwrap(wrapper: KeyWrapper, subject: str, keys: Iterable[WrappedKey]) -> dict[str, bytes]:
    return {each.key_id: await wrapper.unwrap(each.wrapped, wrap_context(subject, each.key_id)) for each in keys}


async def _digest_root(store: KeyStore, wrapper: KeyWrapper) -> bytes:
    """The root of keyed hashes: made once in a key store's life; of processes that do so at once, one wins."""
    stored = await store.load([DIGEST_SUBJECT])
    if not stored:
        wrapped = await _wrap(wrapper, DIGEST_SUBJECT, *_new_key(ROOT_BYTES))
        stored = await store.insert({DIGEST_SUBJECT: wrapped})
    (root,) = (await _unwrap(wrapper, DIGEST_SUBJECT, stored[DIGEST_SUBJECT].keys)).values()
    return root
