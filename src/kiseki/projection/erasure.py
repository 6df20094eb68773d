"""`Erasures`: makes sure that the keys of erased subjects are destroyed, whatever happened to who recorded the fact.

The command side destroys the keys right after the commit; a crash in between leaves the fact without the deed. Whoever
follows the journal therefore does it again, before it applies the page, once for all projections of a process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from kiseki.journal.port import Commit
from kiseki.kernel.decider import Decider
from kiseki.kernel.personal import Erased
from kiseki.kernel.ports import Protector

__all__ = ["Erasures"]


class Erasures:
    """Destroys the keys of the subjects that erasing events name; shared by all projections of an updater.

    Remembers the last `remember` subjects it has seen to, so that each projection that passes the same event does
    not ask the key store again. Forgetting one costs a question, nothing else.
    """

    def __init__(
        self, *, deciders: Iterable[Decider[Any, Any, Any]], protector: Protector, remember: int = 10_000
    ) -> None:
        # By name alone: a version that only a newer application knows erases no less.
        self._types = frozenset(
            event_type.event_type.name
            for decider in deciders
            for event_type in decider.event_types
            if event_type.event_type.erases_subject
        )
        self._protector = protector
        self._remember = remember
        self._done: dict[str, None] = {}
        self._lock = asyncio.Lock()

    async def ensure(self, commits: Sequence[Commit]) -> bool:
        """Destroys what is left of the keys of every subject that these commits erase; whether there was such a one.

        Raises Unavailable; then it must be called again before the commits are applied.
        """
        subjects = {
            event.subject or commit.stream: None
            for commit in commits
            for event in commit.events
            if event.type in self._types
        }
        if not subjects:
            return False
        async with self._lock:
            missing = [subject for subject in subjects if subject not in self._done]
            if missing:
                await self._destroy(missing)
        return True

    async def _destroy(self, subjects: Sequence[str]) -> None:
        # Reading is cheaper than a durable write, and after a restart all but the last erasures are already done.
        known = await self._protector.ciphers(subjects)
        for subject in subjects:
            if not isinstance(known.get(subject), Erased):
                await self._protector.erase(subject)
            self._done[subject] = None
        while len(self._done) > self._remember:
            del self._done[next(iter(self._done))]
