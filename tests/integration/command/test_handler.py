"""The command handler on the SQLite journal: concurrency, snapshots, idempotency, claims, personal data."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec
import pytest

from kiseki import (
    ERASED,
    Application,
    Claim,
    Command,
    Context,
    Decider,
    Erased,
    Event,
    Personal,
    Rejected,
    Release,
    State,
    StreamId,
    Take,
    Text,
)
from kiseki.command.errors import CommandConflict, DecisionFailed, IdempotencyInFlight, IdempotencyMismatch
from kiseki.command.handler import CommandHandler, CommandRequest
from kiseki.command.idempotency import IdempotencyKey
from kiseki.journal.port import CommitMetadata, CommitTooLarge
from kiseki.kernel.codec import EncodedEvent
from kiseki.kernel.schema import UnknownEvent
from kiseki.kernel.shapes import Unstorable
from kiseki.users import app as users
from kiseki.users.user_account import (
    CreateUserAccount,
    EmailAddress,
    EraseUserAccount,
    FirstName,
    LastName,
    PersonName,
    RenameUserAccount,
    UserAccountCreated,
    UserAccountErased,
    UserAccountRenamed,
)
from tests.support import World

REQUEST = CommandRequest(actor="someone", correlation_id="test")
TARO = CreateUserAccount(FirstName("太郎"), LastName("山田"), EmailAddress("taro@example.com"))


def keyed(key: str, subject: str = "alice") -> CommandRequest:
    return CommandRequest(actor="someone", correlation_id="test", idempotency_key=IdempotencyKey(subject, key))


def rename(account: str, name: str) -> RenameUserAccount:
    return RenameUserAccount(StreamId(account), FirstName("花子"), LastName(name))


# A context with claims, plain text and several events for one command.


class Handle(Text, max_length=100):
    pass


class Registered(Event, name="Registered", version=1):
    handle: Handle
    note: str


class HandleChanged(Event, name="HandleChanged", version=1):
    handle: Handle


class Register(Command):
    member_id: StreamId
    handle: Handle
    note: str = ""


class ChangeHandle(Command):
    member_id: StreamId
    handle: Handle


class Flood(Command):
    member_id: StreamId
    events: int


class Break(Command):
    member_id: StreamId


class Member(State):
    handle: str | None


def decide(command: Register | ChangeHandle | Flood | Break, state: Member) -> Sequence[Registered | HandleChanged]:
    match command:
        case Register():
            return (Registered(command.handle, command.note),)
        case ChangeHandle(handle=handle) if state.handle == handle:
            return ()
        case ChangeHandle():
            return (HandleChanged(command.handle),)
        case Flood():
            return [HandleChanged(Handle(f"h{number}")) for number in range(command.events)]
        case Break():
            raise ZeroDivisionError("a secret")


def evolve(state: Member, event: Registered | HandleChanged) -> Member:
    return Member(event.handle)


def claims(state: Member, event: Registered | HandleChanged) -> Sequence[Claim]:
    taken = Take("handle", event.handle)
    return (taken,) if state.handle is None else (Release("handle", state.handle), taken)


members = Application(
    [
        Context(
            "members",
            deciders=[
                Decider(
                    "Member",
                    initial=Member(None),
                    decide=decide,
                    evolve=evolve,
                    commands=Register | ChangeHandle | Flood | Break,
                    events=Registered | HandleChanged,
                    claims=claims,
                )
            ],
            access={Register: {"user"}, ChangeHandle: {"user"}, Flood: {"user"}, Break: {"user"}},
        )
    ]
)


async def test_accepted_commands_are_facts_with_their_metadata(world: World) -> None:
    handler = world.handler(users)
    created = await handler.handle(TARO, REQUEST)
    renamed = await handler.handle(rename(created.stream_id, "田中"), REQUEST)
    assert (created.sequence_number, renamed.sequence_number) == (1, 2)
    assert len(created.stream_id) == 26
    assert await world.events(users, created.stream) == [
        UserAccountCreated(PersonName(FirstName("太郎"), LastName("山田")), EmailAddress("taro@example.com")),
        UserAccountRenamed(PersonName(FirstName("花子"), LastName("田中"))),
    ]
    pages = [page async for page in world.journal.read(created.stream)]
    assert pages[0][0].actor == "someone"
    assert pages[0][0].occurred_at == world.clock.time
    assert world.telemetry.outcomes == ["accepted", "accepted"]


async def test_a_rejection_writes_nothing(world: World) -> None:
    handler = world.handler(users)
    created = await handler.handle(TARO, REQUEST)
    with pytest.raises(Rejected) as rejected:
        await handler.handle(RenameUserAccount(StreamId(created.stream_id), TARO.first_name, TARO.last_name), REQUEST)
    assert rejected.value.code == "SAME_NAME"
    with pytest.raises(Rejected, match="no account"):
        await handler.handle(rename("01UNKNOWN", "x"), REQUEST)
    assert len(await world.events(users, created.stream)) == 1
    assert (await world.journal.lag((await world.journal.feed("", limit=1)).position)).commits == 0  # type: ignore[arg-type]
    assert world.telemetry.outcomes == ["accepted", "rejected", "rejected"]


async def test_several_processes_write_one_stream_and_lose_nothing(world: World) -> None:
    handlers = [world.handler(users) for _ in range(4)]
    created = await handlers[0].handle(TARO, REQUEST)

    async def work(number: int, handler: CommandHandler) -> None:
        for step in range(10):
            await handler.handle(rename(created.stream_id, f"name {number}-{step}"), REQUEST)

    await asyncio.gather(*(work(number, handler) for number, handler in enumerate(handlers)))
    events = await world.events(users, created.stream)
    assert len(events) == 41
    assert len({event.name.last_name for event in events[1:]}) == 40  # type: ignore[attr-defined]
    assert world.telemetry.conflicts > 0


async def test_a_process_that_was_overtaken_decides_again_on_the_new_state(world: World) -> None:
    one, two = world.handler(users), world.handler(users)
    created = await one.handle(TARO, REQUEST)
    await two.handle(rename(created.stream_id, "same"), REQUEST)
    # `one` still believes in 山田: its append conflicts, it reads on, and the decision is another one.
    with pytest.raises(Rejected) as rejected:
        await one.handle(rename(created.stream_id, "same"), REQUEST)
    assert rejected.value.code == "SAME_NAME"
    assert world.telemetry.conflicts == 1
    assert len(await world.events(users, created.stream)) == 2


async def test_conflicts_end_in_an_error_after_a_bounded_number_of_attempts(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, other = world.handler(members), world.handler(members)
    await handler.handle(Register(StreamId("m"), Handle("first")), REQUEST)
    append = world.journal.append
    overtaking = 0

    async def overtaken(stream: str, after: int, events: Sequence[EncodedEvent], **options: object) -> object:
        nonlocal overtaking
        if overtaking % 2 == 0:
            overtaking += 1
            await other.handle(ChangeHandle(StreamId("m"), Handle(f"other {overtaking}")), REQUEST)
            overtaking += 1
        return await append(stream, after, events, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(world.journal, "append", overtaken)
    with pytest.raises(CommandConflict, match="12 times"):
        await handler.handle(ChangeHandle(StreamId("m"), Handle("mine")), REQUEST)
    assert world.telemetry.conflicts == 12


async def test_snapshots_shorten_loading_and_are_never_needed(world: World) -> None:
    handler = world.handler(users, snapshot_every=10)
    created = await handler.handle(TARO, REQUEST)
    for number in range(2, 36):
        await handler.handle(rename(created.stream_id, f"name {number}"), REQUEST)
    await handler.close()
    assert world.telemetry.snapshots == ["saved"] * 3
    fresh = world.handler(users, snapshot_every=10)
    await fresh.handle(rename(created.stream_id, "after snapshot"), REQUEST)
    assert world.telemetry.loads[-1] == (5, False, True)
    await world.journal.delete_snapshots(created.stream)
    fresh = world.handler(users)
    await fresh.handle(rename(created.stream_id, "without"), REQUEST)
    assert world.telemetry.loads[-1] == (36, False, False)


async def test_a_damaged_snapshot_is_passed_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = world.handler(users, snapshot_every=2)
    created = await handler.handle(TARO, REQUEST)
    await handler.handle(rename(created.stream_id, "two"), REQUEST)
    await handler.close()
    load = world.journal.load_snapshot

    async def damaged(stream: str, schema: str) -> object:
        snapshot = await load(stream, schema)
        return None if snapshot is None else msgspec.structs.replace(snapshot, data=b"{" + snapshot.data)

    monkeypatch.setattr(world.journal, "load_snapshot", damaged)
    result = await world.handler(users).handle(rename(created.stream_id, "three"), REQUEST)
    assert result.sequence_number == 3
    assert world.telemetry.snapshots == ["saved", "unreadable"]


async def test_idle_states_leave_memory(world: World) -> None:
    handler = world.handler(users, cache_idle=120)
    created = await handler.handle(TARO, REQUEST)
    world.clock.advance(119)
    await handler.handle(rename(created.stream_id, "a"), REQUEST)
    assert world.telemetry.loads[-1] == (0, True, False)
    world.clock.advance(121)
    handler.evict()
    await handler.handle(rename(created.stream_id, "b"), REQUEST)
    assert world.telemetry.loads[-1] == (2, False, False)


async def test_the_cache_is_bounded(world: World) -> None:
    handler = world.handler(users, cache_capacity=3)
    first = await handler.handle(TARO, REQUEST)
    for _ in range(3):
        await handler.handle(TARO, REQUEST)
    await handler.handle(rename(first.stream_id, "x"), REQUEST)
    assert world.telemetry.loads[-1] == (1, False, False)


async def test_the_same_key_and_command_give_the_first_answer(world: World) -> None:
    handler, other_process = world.handler(users), world.handler(users)
    first = await handler.handle(TARO, keyed("k"))
    again = await handler.handle(TARO, keyed("k"))
    elsewhere = await other_process.handle(TARO, keyed("k"))
    assert first.stream == again.stream == elsewhere.stream
    assert first.sequence_number == again.sequence_number == elsewhere.sequence_number
    assert (first.events, again.events) == (1, 0)
    assert len((await world.journal.feed("")).commits) == 1  # type: ignore[arg-type]


async def test_a_key_belongs_to_its_subject_and_its_command(world: World) -> None:
    handler = world.handler(users)
    first = await handler.handle(TARO, keyed("k"))
    with pytest.raises(IdempotencyMismatch):
        await handler.handle(rename(first.stream_id, "x"), keyed("k"))
    other = await handler.handle(TARO, keyed("k", "mallory"))
    assert other.stream != first.stream


async def test_rejections_are_not_remembered(world: World) -> None:
    handler = world.handler(users)
    first = await handler.handle(TARO, REQUEST)
    same = RenameUserAccount(StreamId(first.stream_id), TARO.first_name, TARO.last_name)
    with pytest.raises(Rejected):
        await handler.handle(same, keyed("k"))
    await handler.handle(rename(first.stream_id, "other"), REQUEST)
    assert (await handler.handle(same, keyed("k"))).events == 1


async def test_a_key_expires(world: World) -> None:
    handler = world.handler(users, idempotency_hours=24)
    first = await handler.handle(TARO, keyed("k"))
    world.clock.advance(24 * 3600 + 1)
    assert (await handler.handle(TARO, keyed("k"))).stream != first.stream


async def test_a_key_in_flight_is_refused_here_and_decided_once_across_processes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, other = world.handler(users), world.handler(users)
    append = world.journal.append
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def slow(*arguments: object, **options: object) -> object:
        if not entered.is_set():
            entered.set()
            await go_on.wait()
        return await append(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(world.journal, "append", slow)
    first = asyncio.create_task(handler.handle(TARO, keyed("k")))
    await entered.wait()
    with pytest.raises(IdempotencyInFlight):
        await handler.handle(TARO, keyed("k"))
    elsewhere = await other.handle(TARO, keyed("k"))
    go_on.set()
    assert (await first).stream == elsewhere.stream
    assert len((await world.journal.feed("")).commits) == 1  # type: ignore[arg-type]


async def test_claims_are_held_by_one_stream_and_move_with_its_facts(world: World) -> None:
    handler = world.handler(members)
    await handler.handle(Register(StreamId("a"), Handle("taken")), REQUEST)
    with pytest.raises(Rejected) as rejected:
        await handler.handle(Register(StreamId("b"), Handle("taken")), REQUEST)
    assert rejected.value.code == "CLAIM_TAKEN"
    await handler.handle(ChangeHandle(StreamId("a"), Handle("other")), REQUEST)
    await handler.handle(Register(StreamId("b"), Handle("taken")), REQUEST)
    assert (await handler.handle(ChangeHandle(StreamId("b"), Handle("taken")), REQUEST)).events == 0


async def test_concurrent_claims_have_one_winner(world: World) -> None:
    handlers = [world.handler(members) for _ in range(8)]
    results = await asyncio.gather(
        *(h.handle(Register(StreamId(f"m{n}"), Handle("wanted")), REQUEST) for n, h in enumerate(handlers)),
        return_exceptions=True,
    )
    assert sum(not isinstance(result, BaseException) for result in results) == 1


async def test_what_no_store_can_hold_and_what_is_too_large_is_refused_before_it_is_written(world: World) -> None:
    handler = world.handler(members)
    for note in ("a\0b", "a\ud800b"):
        with pytest.raises(Unstorable):
            await handler.handle(Register(StreamId("a"), Handle("h"), note), REQUEST)
    with pytest.raises(CommitTooLarge, match="500"):
        await handler.handle(Flood(StreamId("a"), 501), REQUEST)
    assert (await world.journal.feed("")).commits == ()  # type: ignore[arg-type]
    assert (await handler.handle(Flood(StreamId("a"), 500), REQUEST)).sequence_number == 500


async def test_a_decider_that_fails_writes_nothing_and_says_nothing_private(world: World) -> None:
    handler = world.handler(members)
    with pytest.raises(DecisionFailed) as failed:
        await handler.handle(Break(StreamId("a")), REQUEST)
    assert "secret" not in str(failed.value)
    assert (await handler.handle(Register(StreamId("a"), Handle("h")), REQUEST)).sequence_number == 1


async def test_an_event_of_the_future_refuses_the_command(world: World) -> None:
    handler = world.handler(members)
    await world.journal.append(
        "Member-a",
        0,
        [EncodedEvent("01", "Registered", 2, msgspec.Raw(b"{}"))],
        metadata=CommitMetadata(commit_id="c", committed_at=world.clock.now(), correlation_id="test"),
    )
    with pytest.raises(UnknownEvent, match="up to version 1"):
        await handler.handle(ChangeHandle(StreamId("a"), Handle("h")), REQUEST)


async def test_personal_data_is_not_in_the_journal_in_any_form(world: World, raw: Callable[[], bytes]) -> None:
    handler = world.handler(users, snapshot_every=2)
    created = await handler.handle(TARO, keyed("taro's key"))
    await handler.handle(rename(created.stream_id, "田中"), REQUEST)
    await handler.close()
    assert world.telemetry.snapshots == ["saved"]
    stored = raw()
    for word in ("太郎", "山田", "田中", "花子", "taro@example.com", "taro's key"):
        assert word.encode() not in stored
        assert word.encode("unicode-escape") not in stored
    assert b"UserAccountCreated" in stored


async def test_erasure_destroys_the_key_and_everything_reads_as_erased(world: World) -> None:
    handler = world.handler(users, snapshot_every=2)
    created = await handler.handle(TARO, REQUEST)
    account = StreamId(created.stream_id)
    await handler.handle(rename(account, "田中"), REQUEST)
    await handler.close()
    erased = await handler.handle(EraseUserAccount(account), REQUEST)
    assert erased.sequence_number == 3
    assert await world.events(users, created.stream) == [
        UserAccountCreated(ERASED, ERASED),
        UserAccountRenamed(ERASED),
        UserAccountErased(),
    ]
    assert await world.protector.ciphers([created.stream]) == {created.stream: ERASED}
    for process in (handler, world.handler(users)):
        with pytest.raises(Rejected) as rejected:
            await process.handle(rename(account, "x"), REQUEST)
        assert rejected.value.code == "ACCOUNT_ERASED"
        assert (await process.handle(EraseUserAccount(account), REQUEST)).events == 0


# Personal data of another subject than the stream.


class Note(Text, max_length=100):
    pass


class Noted(Event, name="Noted", version=1):
    subject = "about"
    about: str
    note: Personal[Note]


class Notes(State):
    notes: tuple[Personal[Note], ...]


class Write(Command):
    book_id: StreamId
    about: str
    note: Note


def write(command: Write, state: Notes) -> Sequence[Noted]:
    return (Noted(command.about, command.note),)


def noted(state: Notes, event: Noted) -> Notes:
    return Notes((*state.notes, event.note))


async def test_a_stream_may_hold_data_of_several_people_and_each_is_erased_alone(world: World) -> None:
    book = Decider("Book", initial=Notes(()), decide=write, evolve=noted, commands=Write, events=Noted)
    app = Application([Context("books", deciders=[book], access={Write: {"user"}})])
    handler = world.handler(app, snapshot_every=2)
    for about in ("UserAccount-a", "UserAccount-b"):
        await handler.handle(Write(StreamId("1"), about, Note(f"about {about}")), REQUEST)
    await handler.close()
    assert world.telemetry.snapshots == ["saved"]
    await world.protector.erase("UserAccount-a")
    handler.forget_subject("UserAccount-a")
    read = await world.events(app, "Book-1")
    assert [isinstance(event.note, Erased) for event in read] == [True, False]  # type: ignore[attr-defined]
    result = await handler.handle(Write(StreamId("1"), "UserAccount-b", Note("more")), REQUEST)
    assert result.sequence_number == 3
    # The snapshot held both people's data, so it is gone with the first of them.
    assert world.telemetry.loads[-1] == (2, False, False)
