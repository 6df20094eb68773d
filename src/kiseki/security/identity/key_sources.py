"""Where the keys come from that tokens are verified with: given once, or read again and again (`RefreshedKeys`).

Used by the verifier and the composition root. What is read stands in `jwks_file` and `jwks_url`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from kiseki.kernel.errors import DefinitionError, KisekiError, Unavailable
from kiseki.kernel.ports import AuditEvent, Auditor, Clock
from kiseki.security.identity.keys import KeyRefused, KeySet, VerificationKey

__all__ = ["FixedKeys", "KeyLoader", "KeySource", "KeysUnavailable", "RefreshedKeys"]

_MIN_JITTER: Final = 0.85

_log = logging.getLogger(__name__)


class KeysUnavailable(Unavailable):
    """There are no keys now to judge a token with, or no newer ones can be read."""

    code = "KEYS_UNAVAILABLE"


class KeySource(Protocol):
    """The keys of now."""

    @property
    def generation(self) -> int:
        """Changes with the keys; what was verified under another one has to be verified again."""
        ...

    async def start(self) -> None:
        """Reads the keys for the first time. Raises KeyRefused for keys that never will be usable."""
        ...

    async def find(self, algorithm: str, key_id: str | None) -> Sequence[VerificationKey]:
        """The keys to try for a token, at most four; none for an unknown one. Raises KeysUnavailable."""
        ...

    async def close(self) -> None:
        """Again is fine."""
        ...


class KeyLoader(Protocol):
    """Reads a key set from somewhere, within a time and size of its own."""

    @property
    def name(self) -> str:
        """What to call the place in messages, without a secret."""
        ...

    async def load(self) -> KeySet | None:
        """The keys; None when they are those of the last call. Raises KeyRefused, KeysUnavailable."""
        ...


class FixedKeys:
    """A KeySource of keys from the settings."""

    generation: Final = 0

    def __init__(self, keys: Iterable[VerificationKey]) -> None:
        """Raises KeyRefused for no keys, and as KeySet."""
        self._keys = KeySet(keys)
        if not self._keys.keys:
            raise KeyRefused("there is no key to verify tokens with")

    async def start(self) -> None:
        """As KeySource."""

    async def find(self, algorithm: str, key_id: str | None) -> Sequence[VerificationKey]:
        """As KeySource; does not suspend."""
        return self._keys.find(algorithm, key_id) or ()

    async def close(self) -> None:
        """As KeySource."""


class RefreshedKeys:
    """A KeySource that reads its keys again every `interval` seconds, and when a token names a key it does not know.

    However many tokens do so, one read serves them all and the next one comes no sooner than `minimum` seconds later;
    each of them waits `wait` seconds at the most. A read that fails keeps the last good keys, for `max_age` seconds.
    Belongs to one event loop.
    """

    def __init__(
        self,
        loader: KeyLoader,
        *,
        clock: Clock,
        auditor: Auditor,
        required: bool = False,
        interval: float = 300.0,
        minimum: float = 10.0,
        wait: float = 1.0,
        max_age: float = 86_400.0,
        jitter: Callable[[], float] = lambda: secrets.SystemRandom().uniform(_MIN_JITTER, 1.0),
    ) -> None:
        """Times in seconds. `required`: whether `start` raises when there are no keys. `jitter`: the part of the
        interval that is waited, up to 1, so that processes do not ask in step. Raises DefinitionError."""
        if not 0 < minimum <= interval <= max_age or not 0 <= wait <= 10:
            raise DefinitionError("of a key set: 0 < minimum <= interval <= max_age, and wait is at most 10 seconds")
        self.generation = 0
        self._loader = loader
        self._clock = clock
        self._auditor = auditor
        self._required = required
        self._interval = interval
        self._minimum = minimum
        self._wait = wait
        self._max_age = max_age
        self._jitter = jitter
        self._keys: KeySet | None = None
        self._read_at = 0.0
        self._tried_at: float | None = None
        self._refresh: asyncio.Task[None] | None = None
        self._loop: asyncio.Task[None] | None = None
        self._failing: str | None = None

    async def start(self) -> None:
        """Reads once, then goes on in the background.

        Raises KeyRefused or KeysUnavailable when keys are required now; else that is logged and tokens get 503.
        """
        if self._loop is not None:
            return
        task = self._begin()
        await asyncio.wait({task})
        if self._keys is None and self._required:
            problem = task.exception()
            raise problem if isinstance(problem, KisekiError) else KeysUnavailable(f"{self._loader.name} has no keys")
        self._loop = asyncio.create_task(self._keep_reading(), name="keys")

    async def find(self, algorithm: str, key_id: str | None) -> Sequence[VerificationKey]:
        """As KeySource. A token without a key id asks for no read."""
        known = self._known()
        found = known.find(algorithm, key_id) if known is not None else None
        if found is None and (key_id is not None or known is None) and self._may_refresh():
            await asyncio.wait({self._begin()}, timeout=self._wait)
            known = self._known()
            found = known.find(algorithm, key_id) if known is not None else None
        if known is None:
            raise KeysUnavailable("the keys of tokens can't be read; see the log of this process", retry_after=5)
        return found or ()

    async def close(self) -> None:
        """As KeySource."""
        tasks = {task for task in (self._loop, self._refresh) if task is not None}
        self._loop = self._refresh = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _known(self) -> KeySet | None:
        """The keys, unless they are too old: a key that was withdrawn is not believed for ever."""
        if self._keys is None or self._clock.monotonic() - self._read_at > self._max_age:
            return None
        return self._keys

    def _may_refresh(self) -> bool:
        if self._refresh is not None and not self._refresh.done():
            return True
        return self._tried_at is None or self._clock.monotonic() - self._tried_at >= self._minimum

    def _begin(self) -> asyncio.Task[None]:
        """The read that is under way, or a new one. Nobody who waits for it can cancel it."""
        if self._refresh is None or self._refresh.done():
            self._tried_at = self._clock.monotonic()
            self._refresh = asyncio.create_task(self._read(), name="key refresh")
            self._refresh.add_done_callback(self._tell)
        return self._refresh

    async def _keep_reading(self) -> None:
        while True:
            await asyncio.sleep(self._interval * self._jitter())
            await asyncio.wait({self._begin()})

    async def _read(self) -> None:
        began = self._clock.monotonic()
        keys = await self._loader.load()
        if keys is not None and (
            self._keys is None or keys.fingerprint != self._keys.fingerprint or _has_secrets(keys)
        ):
            self._keys = keys
            self.generation += 1
            _log.info("read %d keys from %s", len(keys.keys), self._loader.name)
            self._note("jwks.refreshed", "done", None)
        if self._keys is not None:
            self._read_at = began

    def _tell(self, task: asyncio.Task[None]) -> None:
        """Logs how a read ended; nothing that a key set holds may end the reading."""
        if task.cancelled():
            return
        problem = task.exception()
        if problem is None:
            self._failing = None
            return
        code = problem.code if isinstance(problem, KisekiError) else type(problem).__name__
        why = str(problem) if isinstance(problem, KisekiError) else type(problem).__name__
        if why != self._failing:  # once for each trouble, not every few seconds
            self._failing = why
            _log.warning("the keys of tokens stay as they are: %s", why)
            self._note("jwks.failed", "failed", code)

    def _note(self, kind: str, outcome: str, code: str | None) -> None:
        self._auditor.note(AuditEvent(kind=kind, outcome=outcome, code=code, target=self._loader.name))


def _has_secrets(keys: KeySet) -> bool:
    """Secrets have no thumbprint, so that two of them can't be told apart by it."""
    return any(not key.thumbprint for key in keys.keys)
