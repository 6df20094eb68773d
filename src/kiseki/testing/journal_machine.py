# ruff: noqa: S101  # a test, though it is shipped
"""`journal_machine`: random commands to a journal, in crowds too, against a model that knows every right answer.

Needs hypothesis. In a pytest module:

    TestMachine = journal_machine(new_store).TestCase

A crowd of appends runs at once, so several answers may be right. Exactly those pass that some order explains: the
feed says in which order commits landed, and every refusal must be the right answer at some moment of that order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeAlias, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from kiseki.journal.port import (
    START,
    ClaimChange,
    ClaimTaken,
    Commit,
    Conflict,
    IdempotencyRecord,
    IdempotencyTaken,
    Position,
    Snapshot,
)
from kiseki.kernel.errors import KisekiError
from kiseki.kernel.ports import Clock
from kiseki.testing.journal_tests.parts import (
    NOON,
    JournalStore,
    SetClock,
    encoded,
    everything,
    idempotency,
    metadata,
    whole_feed,
)

__all__ = ["OpenJournal", "journal_machine"]

_T = TypeVar("_T")

OpenJournal: TypeAlias = Callable[[Clock], Awaitable[JournalStore]]
"""Opens a journal on one store; again, the same store anew."""

_STREAMS = ("Thing-1", "Thing-2", "Other-1")
_KEEP = timedelta(hours=24)


class _Wish(NamedTuple):
    """An append as it is drawn: where it is relative to what the model knows."""

    stream: str
    offset: int
    events: int
    claims: tuple[ClaimChange, ...]
    key: str | None
    twice: bool


class _Append(NamedTuple):
    """An append as it is sent."""

    commit: Commit
    claims: tuple[ClaimChange, ...]
    record: IdempotencyRecord | None


class _Model:
    """What a journal holds, in the plainest form."""

    def __init__(self) -> None:
        self.commits: tuple[Commit, ...] = ()
        self.claims: dict[tuple[str, str], str] = {}
        self.keys: dict[str, IdempotencyRecord] = {}

    def last(self, stream: str) -> int:
        return max((commit.last_sequence_number for commit in self.commits if commit.stream == stream), default=0)

    def recall(self, key: str, now: datetime) -> IdempotencyRecord | None:
        record = self.keys.get(key)
        return record if record is not None and record.expires_at > now else None

    def answer(self, append: _Append, now: datetime) -> Commit | type[KisekiError]:
        """What the journal has to answer now."""
        commit = append.commit
        for there in self.commits:
            if (there.stream, there.first_sequence_number, there.metadata.commit_id) == (
                commit.stream,
                commit.first_sequence_number,
                commit.metadata.commit_id,
            ):
                return there
        if append.record is not None and self.recall(append.record.key, now) is not None:
            return IdempotencyTaken
        if self.last(commit.stream) != commit.first_sequence_number - 1:
            return Conflict
        return commit if self._changed_claims(append) is not None else ClaimTaken

    def _changed_claims(self, append: _Append) -> dict[tuple[str, str], str] | None:
        held = dict(self.claims)
        for claim in append.claims:
            value = (claim.scope, claim.digest)
            holder = held.get(value, append.commit.stream)
            if claim.take and holder != append.commit.stream:
                return None
            if claim.take:
                held[value] = append.commit.stream
            elif holder == append.commit.stream:
                held.pop(value, None)
        return held

    def land(self, append: _Append) -> _Model:
        """The model after the append."""
        after = _Model()
        after.commits = (*self.commits, append.commit)
        after.claims = self._changed_claims(append) or {}
        after.keys = dict(self.keys)
        if append.record is not None:
            after.keys[append.record.key] = append.record
        return after


_claims = st.lists(
    st.builds(ClaimChange, st.just("address"), st.sampled_from(["v", "w", "x"]), st.booleans()), max_size=3
).map(tuple)
_wishes = st.builds(
    _Wish,
    stream=st.sampled_from(_STREAMS),
    offset=st.sampled_from([0, 0, 0, 0, -1, 1, -3]),
    events=st.integers(1, 4),
    claims=st.one_of(st.just(()), st.just(()), _claims),
    key=st.one_of(st.none(), st.none(), st.sampled_from(["k", "l"])),
    twice=st.sampled_from([False, False, False, True]),
)


def journal_machine(new_store: Callable[[], OpenJournal], *, reopens: bool = True) -> type[RuleBasedStateMachine]:
    """The machine for a kind of store. `new_store` gives what opens a journal on a fresh, empty store.

    `reopens` says whether a store outlives its journal; then it is closed and opened again now and then.
    """

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.loop = asyncio.new_event_loop()
            self.clock = SetClock(NOON)
            self.open = new_store()
            self.journal = self.run(self.open_one())
            self.model = _Model()
            self.position: Position = START
            self.followed = 0
            self.number = 0
            self.snapshots: dict[tuple[str, str], dict[int, Snapshot]] = {}

        def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
            return self.loop.run_until_complete(coroutine)

        async def open_one(self) -> JournalStore:
            return await self.open(self.clock)

        def plan(self, wish: _Wish) -> list[_Append]:
            self.number += 1
            name = f"c{self.number}"
            first = max(0, self.model.last(wish.stream) + wish.offset) + 1
            commit = Commit(
                stream=wish.stream,
                first_sequence_number=first,
                metadata=metadata(name, at=self.clock.now()),
                events=tuple([encoded(f"{name}e{n}") for n in range(wish.events)]),
            )
            record = None
            if wish.key is not None:
                record = idempotency(
                    wish.key, wish.stream, commit.last_sequence_number, expires_at=self.clock.now() + _KEEP
                )
            return [_Append(commit, wish.claims, record)] * (2 if wish.twice else 1)

        async def send(self, append: _Append) -> Commit:
            commit = append.commit
            return await self.journal.append(
                commit.stream,
                commit.first_sequence_number - 1,
                commit.events,
                metadata=commit.metadata,
                claims=append.claims,
                idempotency=append.record,
            )

        async def send_all(self, appends: Sequence[_Append]) -> list[Commit | BaseException]:
            return await asyncio.gather(*(self.send(append) for append in appends), return_exceptions=True)

        async def follow(self, limit: int) -> tuple[Commit, ...]:
            page = await self.journal.feed(self.position, limit=limit)
            self.position = page.position
            return page.commits

        def catch_up(self) -> None:
            while self.followed < len(self.model.commits):
                commits = self.run(self.follow(500))
                assert commits == self.model.commits[self.followed :][: len(commits)]
                assert commits
                self.followed += len(commits)

        @rule(wish=_wishes)
        def append_one(self, wish: _Wish) -> None:
            for append in self.plan(wish):
                expected = self.model.answer(append, self.clock.now())
                (outcome,) = self.run(self.send_all([append]))
                assert (outcome if isinstance(outcome, Commit) else type(outcome)) == expected
                if isinstance(expected, Commit) and expected not in self.model.commits:
                    self.model = self.model.land(append)

        @rule(wishes=st.lists(_wishes, min_size=2, max_size=12))
        def append_in_a_crowd(self, wishes: Sequence[_Wish]) -> None:
            self.catch_up()
            appends = [append for wish in wishes for append in self.plan(wish)]
            outcomes = self.run(self.send_all(appends))
            landed = self.run(self.follow(500))
            self.followed += len(landed)
            moments = [self.model]
            for commit in landed:
                append = next(append for append in appends if append.commit == commit)
                assert self.model.answer(append, self.clock.now()) == commit, "it could not land after those before it"
                self.model = self.model.land(append)
                moments.append(self.model)
            for append, outcome in zip(appends, outcomes, strict=True):
                if isinstance(outcome, Commit):
                    assert outcome == append.commit
                    assert outcome in landed
                else:
                    right = [moment.answer(append, self.clock.now()) for moment in moments]
                    assert type(outcome) in right, f"{type(outcome).__name__} was right at no moment"

        @precondition(lambda self: self.model.commits)
        @rule(data=st.data())
        def append_again(self, data: st.DataObject) -> None:
            commit = data.draw(st.sampled_from(self.model.commits))
            assert self.run(self.send(_Append(commit, (), None))) == commit

        @rule(stream=st.sampled_from(_STREAMS), after=st.integers(0, 12))
        def read(self, stream: str, after: int) -> None:
            expected = [
                event for commit in self.model.commits if commit.stream == stream for event in commit.recorded(after)
            ]
            assert self.run(everything(self.journal, stream, after)) == expected

        @rule(limit=st.integers(1, 5))
        def follow_the_feed(self, limit: int) -> None:
            commits = self.run(self.follow(limit))
            assert commits == self.model.commits[self.followed :][:limit]
            self.followed += len(commits)

        @rule()
        def measure(self) -> None:
            behind = self.model.commits[self.followed :]
            lag = self.run(self.journal.lag(self.position))
            assert (lag.commits, lag.oldest) == (len(behind), behind[0].metadata.committed_at if behind else None)

        @rule(key=st.sampled_from(["k", "l", "m"]))
        def recall(self, key: str) -> None:
            assert self.run(self.journal.recall(key)) == self.model.recall(key, self.clock.now())

        @rule(hours=st.sampled_from([1, 11, 24]))
        def wait(self, hours: int) -> None:
            self.clock.advance(timedelta(hours=hours))

        @rule(stream=st.sampled_from(_STREAMS), schema=st.sampled_from(["1-a", "2-b"]), keep=st.sampled_from([1, 2]))
        def save_snapshot(self, stream: str, schema: str, keep: int) -> None:
            number = self.model.last(stream)
            snapshot = Snapshot(
                stream=stream,
                sequence_number=number,
                schema=schema,
                data=f"{stream} {number} {self.clock.now()}".encode(),
                saved_at=self.clock.now(),
            )
            self.run(self.journal.save_snapshot(snapshot, keep=keep))
            self.snapshots.setdefault((stream, schema), {})[number] = snapshot

        @rule(stream=st.sampled_from(_STREAMS))
        def delete_snapshots(self, stream: str) -> None:
            self.run(self.journal.delete_snapshots(stream))
            self.snapshots = {key: kept for key, kept in self.snapshots.items() if key[0] != stream}

        @rule(stream=st.sampled_from(_STREAMS), schema=st.sampled_from(["1-a", "2-b", "3-c"]))
        def load_snapshot(self, stream: str, schema: str) -> None:
            kept = self.snapshots.get((stream, schema), {})
            assert self.run(self.journal.load_snapshot(stream, schema)) == (kept[max(kept)] if kept else None)

        @precondition(lambda self: reopens)
        @rule()
        def reopen(self) -> None:
            self.run(self.journal.close())
            self.journal = self.run(self.open_one())

        def teardown(self) -> None:
            try:
                assert tuple(self.run(whole_feed(self.journal))) == self.model.commits
                self.run(self.journal.close())
            finally:
                self.loop.close()

    return Machine
