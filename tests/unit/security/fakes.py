"""Parts that the tests of the security room share: a clock that is told the time, and a master key."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from kiseki.security.digests import Digests
from kiseki.security.key_store import Erasures, KeyStore, MemoryKeyStore, SubjectKeys, WrappedKey
from kiseki.security.master_key import LocalMasterKey
from kiseki.security.protector import KeyProtector

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
MASTER = bytes(range(32))
ROOT = bytes(range(100, 132))


class FakeClock:
    """A kernel Clock that moves when it is told to."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


class WatchedStore(MemoryKeyStore):
    """A store in memory that counts, and that a test can hold up or break."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.before: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {}
        self.after: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {}

    async def _step(self, name: str, hooks: dict[str, Callable[[], Coroutine[Any, Any, None]]]) -> None:
        if name in hooks:
            await hooks[name]()

    async def load(self, subjects: Collection[str]) -> dict[str, SubjectKeys]:
        self.calls.append("load")
        await self._step("load", self.before)
        found = await super().load(subjects)
        await self._step("load", self.after)
        return found

    async def insert(self, keys: Mapping[str, WrappedKey]) -> dict[str, SubjectKeys]:
        self.calls.append("insert")
        await self._step("insert", self.before)
        found = await super().insert(keys)
        await self._step("insert", self.after)
        return found

    async def erase(self, subject: str, at: datetime) -> None:
        self.calls.append("erase")
        await self._step("erase", self.before)
        await super().erase(subject, at)
        await self._step("erase", self.after)

    async def erasures(self, after: int | None) -> Erasures:
        self.calls.append("erasures")
        await self._step("erasures", self.before)
        return await super().erasures(after)


class WatchedMasterKey(LocalMasterKey):
    """A master key that counts."""

    def __init__(self, key: bytes = MASTER) -> None:
        super().__init__(key)
        self.wraps = 0
        self.unwraps = 0

    async def wrap(self, plain: bytes, context: bytes) -> bytes:
        self.wraps += 1
        return await super().wrap(plain, context)

    async def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        self.unwraps += 1
        return await super().unwrap(wrapped, context)


def protector(store: KeyStore, clock: FakeClock, **options: Any) -> KeyProtector:
    """A protector as a process of its own would have it."""
    options.setdefault("wrapper", LocalMasterKey(MASTER))
    return KeyProtector(store=store, clock=clock, digests=Digests(ROOT), **options)
