"""What an erasure promises when it is refused, interrupted or disturbed: what was refused is never done later, what was
answered as done is done, and a ledger that is older than the stores is noticed."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from kiseki.application.commands import CommandSettings, command_handler
from kiseki.application.context import Application, Context
from kiseki.application.system import UlidSource
from kiseki.command.errors import IdempotencyMismatch
from kiseki.command.handler import CommandHandler, CommandRequest
from kiseki.command.idempotency import IdempotencyKey
from kiseki.kernel.command import Command
from kiseki.kernel.decider import Decider, Rejected
from kiseki.kernel.errors import Unavailable
from kiseki.kernel.event import Event
from kiseki.kernel.personal import Personal
from kiseki.kernel.state import State
from kiseki.kernel.streams import StreamId
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.kernel.text import Text
from kiseki.security.digests import Digests
from kiseki.security.erasure.ledger import ErasureLedger
from kiseki.security.key_store import MemoryKeyStore
from kiseki.security.sqlite_key_store import SqliteKeyStore
from tests.integration.security.test_erasure_replay import REQUEST, Forget, Hold, Join, Mail, Move, World, app
from tests.unit.security.fakes import ROOT, FakeClock, protector


@pytest.fixture
def world() -> World:
    return World()


def id_of(stream: str) -> StreamId:
    return StreamId(stream.partition("-")[2])


async def forgetting(world: World, between: Callable[[], Awaitable[object]]) -> CommandHandler:
    """A handler whose first erasure is interrupted between the ledger's line and the fact."""
    handler, _ = await world.process()
    add = world.lines.add
    done: list[bool] = []

    async def interrupted(line: Any) -> Any:
        added = await add(line)
        if line.kind == "erase" and not done:
            done.append(True)
            await between()
        return added

    world.lines.add = interrupted  # type: ignore[method-assign]
    return handler


async def handle(world: World, command: Command, request: CommandRequest = REQUEST) -> None:
    await (await world.process())[0].handle(command, request)


async def test_what_was_rejected_is_not_done_later(world: World) -> None:
    stream = await world.join("a@b")
    handler = await forgetting(world, lambda: handle(world, Hold(id_of(stream))))
    with pytest.raises(Rejected):
        await handler.handle(Forget(id_of(stream)), REQUEST)
    await handle(world, Move(id_of(stream), Mail("new@b")))  # which ends the hold
    await world.replay()
    assert not await world.is_erased(stream)


async def test_what_another_command_of_the_same_key_stood_for_is_not_done_later(world: World) -> None:
    stream, other = await world.join("a@b"), await world.join("c@d")
    keyed = CommandRequest(actor="a", correlation_id="c", idempotency_key=IdempotencyKey("someone", "k"))
    handler = await forgetting(world, lambda: handle(world, Move(id_of(other), Mail("x@d")), keyed))
    with pytest.raises(IdempotencyMismatch):
        await handler.handle(Forget(id_of(stream)), keyed)
    await world.replay()
    assert not await world.is_erased(stream)


async def test_a_line_that_another_process_withdrew_is_not_used_again(world: World) -> None:
    stream = await world.join("a@b")
    handler = await forgetting(world, lambda: handle(world, Hold(id_of(stream))))
    with pytest.raises(Rejected):
        await handler.handle(Forget(id_of(stream)), REQUEST)
    await world.replay()
    await handler.handle(Move(id_of(stream), Mail("n@b")), REQUEST)
    world.keys.down = True
    with pytest.raises(Unavailable):
        await handler.handle(Forget(id_of(stream)), REQUEST)
    world.keys.down = False
    await world.replay(everything=True)
    assert await world.is_erased(stream)


async def test_one_erasure_that_can_not_be_made_again_does_not_make_every_look_a_whole_one(world: World) -> None:
    held = await world.join("held@b")
    await handle(world, Hold(id_of(held)))
    backup = world.backup()
    await handle(world, Move(id_of(held), Mail("h2@b")))
    await world.forget(await world.join("m@b"))
    await world.forget(held)
    await world.replay()
    world.restore_journal(backup)
    assert (await world.replay()).everything
    assert not (await world.replay()).everything


async def test_an_older_copy_of_the_ledger_is_noticed(world: World) -> None:
    first, second = await world.join("x@b"), await world.join("y@b")
    await world.forget(first)
    await world.replay()
    backup = world.backup()
    kept, mark = list(world.lines.kept), world.lines.marked
    await world.forget(second)
    await world.replay()
    world.lines.kept, world.lines.marked = kept, mark
    assert (await world.replay()).adopted == 1
    world.restore_journal(backup)
    world.restore_keys(backup)
    await world.replay()
    assert await world.is_erased(second)


async def test_a_key_leaves_memory_in_time_also_when_nobody_asks_for_it() -> None:
    clock = FakeClock()
    keeper = protector(MemoryKeyStore(), clock, ttl=300.0)
    await keeper.ensure(["A-1"])
    clock.advance(301)
    await keeper.ciphers(["B-1"])
    assert "A-1" not in keeper._cache._entries


async def test_what_is_answered_as_done_has_left_the_log_of_the_key_store(tmp_path: Path) -> None:
    world, path = World(), tmp_path / "keys.db"
    store = await SqliteKeyStore.open(path)
    ledger = await ErasureLedger.open(world.lines, digests=Digests(ROOT), clock=world.clock)
    keeper = protector(store, world.clock, erasure_log=ledger)
    handler = handler_of(app, world, keeper, ledger)
    stream = (await handler.handle(Join(Mail("a@b")), REQUEST)).stream
    needle = base64.b64encode((await store.load([stream]))[stream].keys[0].wrapped)
    assert any(needle in file.read_bytes() for file in tmp_path.iterdir())
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM subject_keys").fetchone()  # as an online backup does
    for _ in range(2):
        with pytest.raises(Unavailable):
            await handler.handle(Forget(id_of(stream)), REQUEST)
    reader.execute("COMMIT")
    reader.close()
    await handler.handle(Forget(id_of(stream)), REQUEST)
    assert not any(needle in file.read_bytes() for file in tmp_path.iterdir())
    await store.close()


def handler_of(application: Application, world: World, keeper: Any, ledger: ErasureLedger) -> CommandHandler:
    handler = command_handler(
        application,
        journal=world.journal,
        snapshots=world.journal,
        protector=keeper,
        clock=world.clock,
        ids=UlidSource(),
        telemetry=NoTelemetry(),
        settings=CommandSettings(),
        erasure_log=ledger,
    )
    keeper.on_erase(handler.forget_subject)
    return handler


# A subject that a field names.


class Name(Text, max_length=100):
    pass


class Opened(Event, name="Opened", version=1):
    customer: str
    name: Personal[Name]
    subject: ClassVar[str] = "customer"


class CustomerErased(Event, name="CustomerErased", version=1, erases_subject=True):
    customer: str
    subject: ClassVar[str] = "customer"


class Empty(State):
    pass


class Known(State):
    customer: str
    name: Personal[Name]


class Over(State):
    pass


class Open(Command):
    customer: Name
    name: Name


class Drop(Command):
    order: StreamId


def decide(command: Open | Drop, state: Empty | Known | Over) -> Sequence[Event]:
    match command, state:
        case Open(), _:
            return (Opened(str(command.customer), command.name),)
        case Drop(), Known():
            return (CustomerErased(state.customer),)
        case _:
            return ()


def evolve(state: Empty | Known | Over, event: Event) -> Empty | Known | Over:
    match event:
        case Opened():
            return Known(event.customer, event.name)
        case _:
            return Over()


ORDERS = Application(
    [
        Context(
            "orders",
            deciders=[
                Decider(
                    "Order",
                    initial=Empty(),
                    decide=decide,
                    evolve=evolve,
                    commands=Open | Drop,
                    events=Opened | CustomerErased,
                )
            ],
            access={Open: {"user"}, Drop: {"user"}},
        )
    ]
)


@pytest.mark.parametrize("key", [None, IdempotencyKey("s", "k")])
async def test_a_subject_that_a_field_names_is_not_answered_as_erased_while_its_keys_are_there(
    world: World, key: IdempotencyKey | None
) -> None:
    ledger = await ErasureLedger.open(world.lines, digests=Digests(ROOT), clock=world.clock)
    handler = handler_of(ORDERS, world, protector(world.keys, world.clock, erasure_log=ledger), ledger)
    request = CommandRequest(actor="a", correlation_id="c", idempotency_key=key)
    order = (await handler.handle(Open(Name("Customer-7"), Name("Ada")), REQUEST)).stream
    world.keys.down = True
    for _ in range(2):
        with pytest.raises(Unavailable):
            await handler.handle(Drop(id_of(order)), request)
    world.keys.down = False
    await handler.handle(Drop(id_of(order)), request)
    assert (await world.keys.load(["Customer-7"]))["Customer-7"].erased_at is not None
