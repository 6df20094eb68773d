"""The law of continuous protection: whatever happens, what the place gives back is the journal of the last step."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kiseki.journal.port import ClaimChange, ClaimTaken, IdempotencyTaken
from kiseki.journal.transfer.transferable import HeldClaim
from kiseki.operations.errors import BackupMissing
from kiseki.operations.sqlite.protection import SqliteJournalProtection
from tests.integration.operations.sqlite.sqlite_parts import (
    Killed,
    KillingPlace,
    Rows,
    append,
    journal_rows,
    no_progress,
    opened,
    place_in,
    record,
)
from tests.support import ManualClock

_STREAMS = st.integers(0, 2)
_CLAIMS = st.lists(st.tuples(st.integers(0, 1), st.booleans()), max_size=2)
_ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), _STREAMS, _CLAIMS, st.booleans()),
        st.tuples(st.just("append"), _STREAMS, _CLAIMS, st.booleans()),
        st.tuples(st.just("held"), st.integers(0, 3), _STREAMS),
        st.tuples(st.just("step")),
        st.tuples(st.just("killed step"), st.integers(0, 7)),
        st.tuples(st.just("wait"), st.sampled_from([1, 60, 40_000, 90_000, -3, -7_200])),
        st.tuples(st.just("prune")),
        st.tuples(st.just("recover")),
    ),
    min_size=4,
    max_size=25,
)


class _World:
    """A live journal under protection, and what its copies may be."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.live = folder / "journal.db"
        self.folder = folder
        (folder / "place").mkdir()
        self.place = KillingPlace(folder / "place")
        self.protection = SqliteJournalProtection(self.live, self.place, clock=self.clock, days=3)
        self.last: dict[int, int] = {}
        self.keys = 0
        self.possible: list[Rows] = []
        """What the place may give back: the last step's, or that of one that died after it had done all."""
        self.finished = False
        self.recoveries = 0

    async def run(self, actions: list[tuple[object, ...]]) -> None:
        async with opened(self.live, self.clock) as journal:
            self.journal = journal
            for name, *arguments in [*actions, ("step",), ("recover",)]:
                await getattr(self, str(name).replace(" ", "_"))(*arguments)

    async def append(self, stream: int, claims: list[tuple[int, bool]], keyed: bool) -> None:
        after = self.last.get(stream, 0)
        self.keys += keyed
        kept = record(f"key-{self.keys}", f"Thing-{stream}", after + 1, self.clock.now() + timedelta(days=1000))
        with suppress(ClaimTaken, IdempotencyTaken):
            await append(
                self.journal,
                f"Thing-{stream}",
                after,
                claims=[ClaimChange("scope", f"value-{value}", take=take) for value, take in claims],
                record=kept if keyed else None,
            )
            self.last[stream] = after + 1

    async def held(self, value: int, stream: int) -> None:
        with suppress(ClaimTaken):
            await self.journal.restore_held([HeldClaim("scope", f"value-{value}", f"Thing-{stream}")], [])

    async def step(self) -> None:
        await self.protection.step(no_progress)
        self._done()

    async def killed_step(self, lives: int) -> None:
        self.place.lives = lives
        try:
            await self.protection.step(no_progress)
        except Killed:
            self.possible.append(journal_rows(self.live))
        else:
            self._done()
        self.place.lives = None

    def _done(self) -> None:
        self.possible = [journal_rows(self.live)]
        self.finished = True

    async def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    async def prune(self) -> None:
        await self.protection.prune(self.clock.now())

    async def recover(self) -> None:
        self.recoveries += 1
        target = self.folder / f"recovered-{self.recoveries}"
        work = target / "work"
        work.mkdir(parents=True)
        there = place_in(self.folder / "place")
        protection = SqliteJournalProtection(target / "journal.db", there, clock=self.clock, days=3)
        try:
            staged = await protection.recover(work, no_progress)
        except BackupMissing:
            if self.finished:
                raise
            return
        await staged.switch()
        assert journal_rows(target / "journal.db") in self.possible


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_ACTIONS)
def test_the_place_gives_back_the_journal_of_the_last_step(actions: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_World(Path(folder)).run(actions))
