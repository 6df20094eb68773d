"""Revoked tokens: a time for each subject before which its tokens count no more.

The port `RevocationStore`, the one in memory, and `RevocationList`, which every process keeps in its memory and reads
anew every few seconds. Used by the verifier, the composition root and `kiseki token revoke`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final, Protocol, TypeAlias

from kiseki.kernel.errors import DefinitionError, KisekiError, Unavailable
from kiseki.kernel.ports import AuditEvent, Auditor, Clock
from kiseki.security.identity.claims import is_text

__all__ = [
    "MAX_REVOCATIONS",
    "MemoryRevocations",
    "NoRevocations",
    "RevocationList",
    "RevocationRefused",
    "RevocationStore",
    "RevocationView",
    "RevocationsUnavailable",
    "Revoked",
]

MAX_REVOCATIONS: Final = 100_000

Revoked: TypeAlias = Mapping[tuple[str, str], float]
"""By issuer and subject: seconds of the epoch; tokens issued up to then are refused."""

_log = logging.getLogger(__name__)


class RevocationsUnavailable(Unavailable):
    """Nobody can tell now which tokens were revoked, or a revocation can't be stored."""

    code = "REVOCATIONS_UNAVAILABLE"


class RevocationRefused(KisekiError):
    """A revocation that is not stored: one subject too many, or no subject."""

    code = "REVOCATION_REFUSED"


class RevocationView(Protocol):
    """What the verifier asks for every request; answers from memory."""

    def not_before(self, issuer: str, subject: str) -> float | None:
        """The time up to which the subject's tokens are revoked, seconds of the epoch; None when none are.

        Raises RevocationsUnavailable.
        """
        ...


class RevocationStore(Protocol):
    """Where the processes of a service share revocations."""

    async def revoke(self, issuer: str, subject: str, *, at: float, forget_before: float) -> None:
        """Revokes the subject's tokens issued up to `at` (seconds of the epoch), durable when this returns.

        An earlier time than the stored one changes nothing. Revocations before `forget_before` may be dropped.
        Raises RevocationsUnavailable, RevocationRefused when there are 100,000 already: change the key then.
        """
        ...

    async def load(self, after: float) -> Revoked:
        """All revocations later than `after`. Raises RevocationsUnavailable."""
        ...

    async def close(self) -> None:
        """Again is fine."""
        ...


class NoRevocations:
    """A RevocationView for where nothing can be revoked: tests, and tools that look at a token alone."""

    def not_before(self, issuer: str, subject: str) -> float | None:
        """None."""
        return None


class MemoryRevocations:
    """A RevocationStore of one process."""

    def __init__(self) -> None:
        self._revoked: dict[tuple[str, str], float] = {}

    async def revoke(self, issuer: str, subject: str, *, at: float, forget_before: float) -> None:
        """As RevocationStore."""
        for known in [known for known, until in self._revoked.items() if until <= forget_before]:
            del self._revoked[known]
        if (issuer, subject) not in self._revoked and len(self._revoked) >= MAX_REVOCATIONS:
            raise too_many()
        self._revoked[issuer, subject] = max(at, self._revoked.get((issuer, subject), at))

    async def load(self, after: float) -> Revoked:
        """As RevocationStore."""
        return {known: until for known, until in self._revoked.items() if until > after}

    async def close(self) -> None:
        """As RevocationStore."""


class RevocationList:
    """A RevocationView that reads a store every `interval` seconds and remembers what it read.

    A revocation by another process is honoured after `interval` and one read; one of this process at once. When the
    store could not be read for `patience` seconds, nobody knows what was revoked, and every token is refused with 503.
    """

    def __init__(
        self,
        store: RevocationStore,
        *,
        clock: Clock,
        auditor: Auditor,
        max_lifetime: float,
        leeway: float,
        interval: float = 5.0,
        patience: float = 30.0,
    ) -> None:
        """`max_lifetime` and `leeway` as in ClaimRules: what is older than both concerns no token any more.

        Belongs to one event loop; closes the store. Raises DefinitionError.
        """
        if not 0 < interval <= patience:
            raise DefinitionError("revocations are read every few seconds, and more often than the patience is long")
        self._store = store
        self._clock = clock
        self._auditor = auditor
        self._horizon = max_lifetime + 2 * leeway
        self._interval = interval
        self._patience = patience
        self._revoked: dict[tuple[str, str], float] = {}
        self._read_at: float | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Reads once and goes on in the background. A store that is down now is only logged: tokens wait for it."""
        if self._task is None:
            await self._try_read()
            self._task = asyncio.create_task(self._keep_reading(), name="revocations")

    async def close(self) -> None:
        """Stops reading and closes the store. Again is fine."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        await self._store.close()

    def not_before(self, issuer: str, subject: str) -> float | None:
        """As RevocationView."""
        if self._read_at is None or self._clock.monotonic() - self._read_at > self._patience:
            raise RevocationsUnavailable("the revoked tokens can't be read; see the log of this process")
        return self._revoked.get((issuer, subject)) if self._revoked else None

    async def revoke(self, issuer: str, subject: str, *, actor: str | None = None) -> None:
        """Revokes all tokens of a subject that were issued until now; audited, durable when this returns.

        New ones work again after the leeway. Raises RevocationRefused, RevocationsUnavailable, AuditUnavailable (then
        nothing was revoked).
        """
        if not is_text(issuer) or not is_text(subject):
            raise RevocationRefused("a revocation names an issuer and a subject, each of 1 to 255 characters")
        now = self._clock.now().timestamp()
        await self._auditor.record(
            AuditEvent(kind="token.revoked", outcome="done", actor=actor, issuer=issuer, subject=subject)
        )
        await self._store.revoke(issuer, subject, at=now, forget_before=now - self._horizon)
        self._revoked[issuer, subject] = max(now, self._revoked.get((issuer, subject), now))

    async def read(self) -> None:
        """Reads the store now. Raises RevocationsUnavailable."""
        began = self._clock.monotonic()
        mine = dict(self._revoked)
        after = self._clock.now().timestamp() - self._horizon
        revoked = dict(await self._store.load(after))
        for known, until in self._revoked.items():
            # Revoked here while the store was being read, so perhaps not in what it gave.
            if mine.get(known) != until:
                revoked[known] = max(until, revoked.get(known, until))
        self._revoked = revoked
        self._read_at = began

    async def _keep_reading(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            await self._try_read()

    async def _try_read(self) -> None:
        try:
            async with asyncio.timeout(self._patience):
                await self.read()
        except (KisekiError, TimeoutError) as problem:
            _log.warning("revoked tokens can't be read: %s", problem or "no answer in time")


def too_many() -> RevocationRefused:
    """The refusal of every store that is full."""
    return RevocationRefused(
        f"{MAX_REVOCATIONS} subjects are revoked already; to revoke everybody's tokens change the key of tokens"
    )
