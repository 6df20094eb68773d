"""Replaying the ledger: what a crash left half done is finished, and what a restore brings back is taken away."""

from __future__ import annotations

import asyncio
import copy
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pytest

from kiseki.application.commands import CommandSettings, command_handler
from kiseki.application.context import Application, Context
from kiseki.application.system import UlidSource
from kiseki.command.erasure import erasing_names
from kiseki.command.handler import CommandHandler, CommandRequest
from kiseki.command.idempotency import IdempotencyKey
from kiseki.journal.memory import MemoryJournal
from kiseki.kernel.command import Command
from kiseki.kernel.decider import Decider, Rejected, Release, Take
from kiseki.kernel.erasure import PlannedErasure
from kiseki.kernel.errors import Unavailable
from kiseki.kernel.event import Event
from kiseki.kernel.personal import Erased, Personal
from kiseki.kernel.state import State
from kiseki.kernel.streams import StreamId
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.kernel.text import Text
from kiseki.security.digests import Digests
from kiseki.security.erasure.binding import BINDING_SCOPE, KeyStoreForeign, bind_key_store
from kiseki.security.erasure.ledger import ErasureLedger
from kiseki.security.erasure.lines import LedgerBroken
from kiseki.security.erasure.replay import ErasureReplay, ReplayReport
from kiseki.security.erasure.store import LedgerUnavailable, MemoryLedgerStore
from kiseki.security.key_store import KeyStoreUnavailable, MemoryKeyStore
from tests.unit.security.fakes import ROOT, FakeClock, protector

REQUEST = CommandRequest(actor="someone", correlation_id="c")


class Mail(Text, max_length=100):
    pass


class Joined(Event, name="Joined", version=1):
    mail: Personal[Mail]


class Moved(Event, name="Moved", version=1):
    mail: Personal[Mail]


class Held(Event, name="Held", version=1):
    """A hold: nobody may be erased now."""


class Gone(Event, name="Gone", version=1, erases_subject=True):
    pass


class Nobody(State):
    pass


class Member(State):
    mail: Personal[Mail]
    is_held: bool = False


class Erasee(State):
    pass


class Join(Command):
    mail: Mail


class Move(Command):
    member: StreamId
    mail: Mail


class Hold(Command):
    member: StreamId


class Forget(Command):
    member: StreamId


def decide(command: Join | Move | Hold | Forget, state: Nobody | Member | Erasee) -> Sequence[Event]:
    match command, state:
        case Join(), _:
            return (Joined(command.mail),)
        case Move(), Member():
            return (Moved(command.mail),)
        case Hold(), Member():
            return (Held(),)
        case Forget(), Member(is_held=True):
            raise Rejected("HELD", "the member is held")
        case Forget(), Member():
            return (Gone(),)
        case Forget(), Erasee():
            return ()
        case _:
            raise Rejected("NOT_FOUND", "there is no such member")


def evolve(state: Nobody | Member | Erasee, event: Event) -> Nobody | Member | Erasee:
    match event:
        case Joined(mail=mail) | Moved(mail=mail):
            return Member(mail)
        case Held():
            assert isinstance(state, Member)
            return Member(state.mail, is_held=True)
        case _:
            return Erasee()


def claims(state: Any, event: Event) -> Sequence[Take | Release]:
    match event:
        case Joined(mail=mail) if not isinstance(mail, Erased):
            return (Take("mail", mail),)
        case Moved(mail=mail) if not isinstance(mail, Erased):
            before = () if isinstance(state.mail, Erased) else (Release("mail", state.mail),)
            return (*before, Take("mail", mail))
        case _:
            return ()  # what is given back with the erasure is the command side's to know


members = Decider(
    "Member",
    initial=Nobody(),
    decide=decide,
    evolve=evolve,
    commands=Join | Move | Hold | Forget,
    events=Joined | Moved | Held | Gone,
    claims=claims,
)
app = Application(
    [Context("members", deciders=[members], access={one: {"user"} for one in (Join, Move, Hold, Forget)})]
)


class BreakableKeys(MemoryKeyStore):
    down = False

    async def erase(self, subject: str, at: Any) -> None:
        if self.down:
            raise KeyStoreUnavailable("down")
        await super().erase(subject, at)


class BreakableLedger(MemoryLedgerStore):
    down = False
    reads = 0

    async def add(self, line: Any) -> bool:
        if self.down:
            raise LedgerUnavailable("down")
        return await super().add(line)

    async def lines(self, after: int, limit: int) -> Any:
        found = await super().lines(after, limit)
        self.reads += len(found)
        return found


class Rows:
    """Read models that a test sets back."""

    def __init__(self) -> None:
        self.lagging: set[str] = set()
        self.waited: list[Mapping[str, int]] = []

    async def behind(self, facts: Mapping[str, int]) -> Collection[str]:
        return self.lagging & set(facts)

    async def reached(self, streams: Collection[str]) -> Mapping[str, int]:
        return {}

    async def build_anew(self, streams: Collection[str]) -> None:
        raise AssertionError

    async def until_applied(self, facts: Mapping[str, int]) -> Collection[str]:
        self.waited.append(dict(facts))
        self.lagging -= set(facts)
        return ()


class World:
    """The stores of a service, which can be copied and put back, and a ledger, which can't."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.journal = MemoryJournal(clock=self.clock)
        self.keys = BreakableKeys()
        self.lines = BreakableLedger()
        self.rows = Rows()

    async def process(self) -> tuple[CommandHandler, ErasureReplay]:
        """A process that starts now: nothing is in its memory."""
        ledger = await ErasureLedger.open(self.lines, digests=Digests(ROOT), clock=self.clock)
        keeper = protector(self.keys, self.clock, erasure_log=ledger)

        def handler(log: Any) -> CommandHandler:
            made = command_handler(
                app,
                journal=self.journal,
                snapshots=self.journal,
                protector=keeper,
                clock=self.clock,
                ids=UlidSource(),
                telemetry=NoTelemetry(),
                settings=CommandSettings(snapshot_every=1),
                erasure_log=log,
            )
            keeper.on_erase(made.forget_subject)
            return made

        replay = ErasureReplay(
            ledger=ledger,
            key_store=self.keys,
            protector=keeper,
            journal=self.journal,
            erasing=erasing_names(members),
            erase_again=handler(None).erase_again,
            rows=self.rows,
        )
        return handler(ledger), replay

    async def replay(self, *, everything: bool = False) -> ReplayReport:
        return await (await self.process())[1].run(everything=everything)

    async def join(self, mail: str) -> str:
        return (await (await self.process())[0].handle(Join(Mail(mail)), REQUEST)).stream

    async def forget(self, stream: str) -> None:
        await (await self.process())[0].handle(Forget(StreamId(stream.partition("-")[2])), REQUEST)

    async def types(self, stream: str) -> list[str]:
        return [event.type async for page in self.journal.read(stream) for event in page]

    async def is_erased(self, stream: str) -> bool:
        known = await self.keys.load([stream])
        return stream in known and known[stream].erased_at is not None

    async def claimed(self) -> set[str]:
        return {claim.stream async for page in self.journal.held_claims() for claim in page}

    def backup(self) -> tuple[Any, Any]:
        return copy.deepcopy(self.journal.__dict__), copy.deepcopy(self.keys.__dict__)

    def restore_journal(self, backup: tuple[Any, Any]) -> None:
        self.journal = MemoryJournal(clock=self.clock)
        self.journal.__dict__.update(copy.deepcopy(backup[0]))

    def restore_keys(self, backup: tuple[Any, Any]) -> None:
        self.keys = BreakableKeys()
        self.keys.__dict__.update(copy.deepcopy(backup[1]))


@pytest.fixture
def world() -> World:
    return World()


async def test_where_nothing_was_restored_nothing_is_done(world: World) -> None:
    stream = await world.join("a@example.com")
    await world.forget(stream)
    first = await world.replay()
    assert (first.everything, first.looked_at, first.changed) == (True, 1, 0)
    again = await world.replay()
    assert (again.everything, again.looked_at, again.changed) == (False, 1, 0)
    assert await world.types(stream) == ["Joined", "Gone"]


@pytest.mark.parametrize("what", ["keys", "journal", "both"])
async def test_what_a_restore_brings_back_is_taken_away(world: World, what: str) -> None:
    stream, other = await world.join("a@example.com"), await world.join("b@example.com")
    backup = world.backup()
    assert await world.claimed() == {stream, other}
    await world.forget(stream)
    assert await world.claimed() == {other}
    await world.replay()
    if what != "keys":
        world.restore_journal(backup)
    if what != "journal":
        world.restore_keys(backup)
    report = await world.replay()
    assert report.everything
    assert await world.types(stream) == ["Joined", "Gone"]
    assert await world.is_erased(stream)
    assert not await world.is_erased(other)
    assert await world.claimed() == {other}
    assert await world.types(other) == ["Joined"]
    assert world.rows.waited[-1] == {stream: 2}
    assert (await world.replay()).changed == 0
    assert await world.join("a@example.com")  # the value is free


async def test_a_restored_read_model_is_waited_for(world: World) -> None:
    streams = [await world.join(f"{number}@example.com") for number in range(3)]
    for stream in streams:
        await world.forget(stream)
    await world.replay()
    world.rows.lagging = {streams[2]}
    report = await world.replay()
    assert report.everything
    assert world.rows.waited[-1] == dict.fromkeys(streams, 2)


async def test_an_old_erasure_far_before_the_newest_is_found_by_the_number_the_key_store_knows(world: World) -> None:
    backup: Any = None
    streams = [await world.join(f"{number}@example.com") for number in range(200)]
    for number, stream in enumerate(streams):
        if number == 1:
            backup = world.backup()
        await world.forget(stream)
    await world.replay()
    world.lines.reads = 0
    assert (await world.replay()).looked_at < 200
    assert world.lines.reads < 700
    world.restore_keys(backup)
    for stream in streams[-170:]:  # the newest look as if nothing had happened
        await world.keys.erase(stream, world.clock.now())
    report = await world.replay()
    assert (report.looked_at, report.keys_destroyed) == (200, 29)


async def test_a_crash_after_the_line_and_before_the_fact(world: World) -> None:
    stream = await world.join("a@example.com")
    ledger = await ErasureLedger.open(world.lines, digests=Digests(ROOT), clock=world.clock)
    await ledger.begin(PlannedErasure(subject=stream, stream=stream, command="forget"))
    report = await world.replay()
    assert (report.facts_made, report.keys_destroyed, report.finished) == (1, 1, 1)
    assert await world.types(stream) == ["Joined", "Gone"]
    assert await world.is_erased(stream)


async def test_a_crash_after_the_fact_and_before_the_keys_go(world: World) -> None:
    stream = await world.join("a@example.com")
    world.keys.down = True
    with pytest.raises(Unavailable):
        await world.forget(stream)  # not acknowledged
    assert await world.types(stream) == ["Joined", "Gone"]
    assert not await world.is_erased(stream)
    world.keys.down = False
    report = await world.replay()
    assert (report.facts_made, report.keys_destroyed, report.finished) == (0, 1, 1)
    assert await world.is_erased(stream)


@pytest.mark.parametrize("key", [None, "k"])
async def test_the_same_command_again_is_answered_when_the_keys_are_gone(world: World, key: str | None) -> None:
    stream = await world.join("a@example.com")
    handler, _ = await world.process()
    request = CommandRequest(
        actor="a", correlation_id="c", idempotency_key=None if key is None else IdempotencyKey("a", key)
    )
    command = Forget(StreamId(stream.partition("-")[2]))
    world.keys.down = True
    for process in (handler, handler, (await world.process())[0]):
        with pytest.raises(Unavailable):
            await process.handle(command, request)
    world.keys.down = False
    assert (await handler.handle(command, request)).events == 0
    assert await world.is_erased(stream)


async def test_nothing_is_written_while_the_ledger_can_not_be(world: World) -> None:
    stream = await world.join("a@example.com")
    handler, _ = await world.process()
    world.lines.down = True
    with pytest.raises(LedgerUnavailable):
        await handler.handle(Forget(StreamId(stream.partition("-")[2])), REQUEST)
    assert await world.types(stream) == ["Joined"]
    assert not await world.is_erased(stream)
    world.lines.down = False
    await handler.handle(Forget(StreamId(stream.partition("-")[2])), REQUEST)
    assert await world.is_erased(stream)


async def test_a_wish_that_the_decider_no_longer_has_is_withdrawn_and_the_keys_stay(world: World) -> None:
    stream = await world.join("a@example.com")
    ledger = await ErasureLedger.open(world.lines, digests=Digests(ROOT), clock=world.clock)
    await ledger.begin(PlannedErasure(subject=stream, stream=stream, command="forget"))
    await (await world.process())[0].handle(Hold(StreamId(stream.partition("-")[2])), REQUEST)
    report = await world.replay()
    assert (report.withdrawn, report.keys_destroyed) == (1, 0)
    assert not await world.is_erased(stream)
    assert (await world.replay(everything=True)).looked_at == 0


async def test_what_was_acknowledged_holds_whatever_an_older_journal_says(world: World) -> None:
    stream = await world.join("a@example.com")
    handler, _ = await world.process()
    await handler.handle(Hold(StreamId(stream.partition("-")[2])), REQUEST)
    backup = world.backup()
    await handler.handle(Move(StreamId(stream.partition("-")[2]), Mail("c@example.com")), REQUEST)  # ends the hold
    await world.forget(stream)
    world.restore_journal(backup)
    world.restore_keys(backup)
    report = await world.replay()
    assert (report.facts_made, report.keys_destroyed, report.without_fact) == (0, 1, [stream])
    assert await world.is_erased(stream)


async def test_a_journal_from_before_there_was_the_person_is_fine(world: World) -> None:
    backup = world.backup()
    stream = await world.join("a@example.com")
    await world.forget(stream)
    await world.replay()
    world.restore_journal(backup)
    world.restore_keys(backup)
    assert (await world.replay()).keys_destroyed == 1
    assert await world.types(stream) == []
    assert await world.is_erased(stream)  # nobody gets a key of this name
    assert (await world.replay()).everything is False


async def test_erasures_from_before_there_was_a_ledger_are_added(world: World) -> None:
    stream = await world.join("a@example.com")
    await world.forget(stream)
    world.lines = BreakableLedger()
    assert (await world.replay()).adopted == 1
    assert (await world.replay(everything=True)).adopted == 0


async def test_a_ledger_that_was_cut_is_refused_before_anything_is_served(world: World) -> None:
    stream = await world.join("a@example.com")
    await world.forget(stream)
    await world.replay()
    world.lines.kept.pop()
    with pytest.raises(LedgerBroken):
        await world.replay()


async def test_two_processes_replay_at_once(world: World) -> None:
    stream = await world.join("a@example.com")
    backup = world.backup()
    await world.forget(stream)
    await world.replay()
    world.restore_journal(backup)
    world.restore_keys(backup)
    await asyncio.gather(*(world.replay() for _ in range(4)))
    assert await world.types(stream) == ["Joined", "Gone"]
    assert await world.is_erased(stream)


async def test_a_state_that_was_being_read_or_written_during_an_erasure_is_not_remembered(world: World) -> None:
    """A hold is being appended when another process erases the person: neither state nor number may be kept."""
    stream = await world.join("a@example.com")
    handler, _ = await world.process()
    await handler.handle(Move(StreamId(stream.partition("-")[2]), Mail("b@example.com")), REQUEST)
    append = world.journal.append

    async def slow(*given: Any, **more: Any) -> Any:
        done = await append(*given, **more)
        handler.forget_subject(stream)
        return done

    world.journal.append = slow  # type: ignore[method-assign]
    result = await handler.handle(Hold(StreamId(stream.partition("-")[2])), REQUEST)
    assert result.sequence_number == 3
    world.journal.append = append  # type: ignore[method-assign]
    (entry,) = [one for name, one in handler._cache._entries.items() if name == stream]
    assert (entry.sequence_number, entry.state) == (-1, None)
    with pytest.raises(Rejected) as held:
        await handler.handle(Forget(StreamId(stream.partition("-")[2])), REQUEST)
    assert held.value.code == "HELD"


async def test_a_journal_knows_its_key_store() -> None:
    clock = FakeClock()
    journal = MemoryJournal(clock=clock)
    own, other = Digests(ROOT), Digests(secrets.token_bytes(32))
    keys = MemoryKeyStore()
    await bind_key_store(journal, keys, own)
    await bind_key_store(journal, keys, own)
    with pytest.raises(KeyStoreForeign) as refused:
        await bind_key_store(journal, keys, other)
    assert "\n" not in str(refused.value)
    held = [claim async for page in journal.held_claims() for claim in page]
    assert [claim.scope for claim in held] == [BINDING_SCOPE]


async def test_a_new_empty_key_store_is_refused_for_a_journal_from_before_the_note(world: World) -> None:
    await world.join("a@example.com")
    await bind_key_store(world.journal, world.keys, Digests(ROOT))
    fresh = World()
    await fresh.join("a@example.com")
    with pytest.raises(KeyStoreForeign):
        await bind_key_store(fresh.journal, MemoryKeyStore(), Digests(ROOT))


async def test_replaying_writes_no_second_line_for_one_erasure(world: World) -> None:
    stream = await world.join("a@example.com")
    backup = world.backup()
    await world.forget(stream)
    world.restore_journal(backup)
    world.restore_keys(backup)
    await world.replay()
    assert [line.kind.value for line in world.lines.kept].count("erase") == 1
