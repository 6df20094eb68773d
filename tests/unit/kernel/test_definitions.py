"""Mistakes in a context are found when it is composed, with a line that says what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar

import pytest
from sqlalchemy import Column, Integer, MetaData, Table

from kiseki import (
    Allow,
    Application,
    Arguments,
    Command,
    Context,
    Decider,
    DefinitionError,
    Event,
    EventMetadata,
    Personal,
    Projection,
    Query,
    ReadModel,
    Rejected,
    State,
    StreamId,
    Text,
    ValueObject,
)
from kiseki.kernel.schema import EventSchema
from kiseki.kernel.shapes import Unreadable


class Label(Text, max_length=20):
    pass


class Part(ValueObject):
    label: Personal[Label]


class Opened(Event, name="Opened", version=1):
    label: Label


class Open(Command):
    box_id: StreamId
    label: Label


class Box(State):
    label: Label | None


def decide(command: Open, state: Box) -> Sequence[Opened]:
    return (Opened(command.label),)


def evolve(state: Box, event: Opened) -> Box:
    return Box(event.label)


def box(name: str = "Box") -> Decider[Open, Box, Opened]:
    return Decider(name, initial=Box(None), decide=decide, evolve=evolve, commands=Open, events=Opened)


def table(schema: str = "boxes") -> Table:
    return Table("boxes", MetaData(schema=schema), Column("id", Integer, primary_key=True))


def follow(event: Opened, metadata: EventMetadata) -> Sequence[object]:
    return ()


class Nothing(Arguments):
    pass


async def ask(arguments: Nothing, read: ReadModel) -> str:
    await asyncio.sleep(0)
    return ""


def boxes() -> Projection:
    return Projection("boxes", version=1, tables=[table()], events=Opened, apply=follow)  # type: ignore[arg-type]


def test_a_whole_application_fits() -> None:
    projection = boxes()
    context = Context(
        "boxes",
        deciders=[box()],
        projections=[projection],
        queries=[Query("boxes", ask, reads=[projection], roles={"user"})],
        access={Open: {"user"}},
    )
    app = Application([context])
    assert list(app.commands) == ["open"]
    assert app.access.rules == {"open": Allow({"user"}), "boxes": Allow({"user"})}


def test_a_command_without_an_access_rule_is_an_error_not_an_open_door() -> None:
    with pytest.raises(DefinitionError, match="no roles for Open"):
        Context("boxes", deciders=[box()], access={})
    with pytest.raises(DefinitionError, match="access of Open: roles are a set"):
        Context("boxes", deciders=[box()], access={Open: "user"})
    with pytest.raises(DefinitionError, match="name the roles"):
        Query("boxes", ask, reads=[boxes()], roles=set())


def test_names_are_unique_in_an_application() -> None:
    one = Context("one", deciders=[box()], access={Open: {"user"}})
    two = Context("two", deciders=[box()], access={Open: {"user"}})
    with pytest.raises(DefinitionError, match="aggregate type Box"):
        Application([one, two])
    other = Context("two", deciders=[box("Other")], access={Open: {"user"}})
    with pytest.raises(DefinitionError, match="command open"):
        Application([one, other])
    with pytest.raises(DefinitionError, match="context one"):
        Application([one, one])


def test_a_projection_follows_events_that_exist_and_keeps_its_own_tables() -> None:
    class Strange(Event, name="Strange", version=1):
        pass

    stray = Projection("boxes", version=1, tables=[table()], events=Strange, apply=follow)  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="follows Strange"):
        Application([Context("boxes", deciders=[box()], projections=[stray], access={Open: {"user"}})])
    with pytest.raises(DefinitionError, match="MetaData"):
        Projection("boxes", version=1, tables=[table("other")], events=Opened, apply=follow)  # type: ignore[arg-type]
    unknown = Query("boxes", ask, reads=[boxes()], roles={"user"})
    with pytest.raises(DefinitionError, match="not in the application"):
        Application([Context("boxes", deciders=[box()], queries=[unknown], access={Open: {"user"}})])


def test_a_command_addresses_one_stream() -> None:
    class Move(Command):
        from_id: StreamId
        to_id: StreamId

    with pytest.raises(DefinitionError, match="one StreamId field"):
        Decider("Box", initial=Box(None), decide=decide, evolve=evolve, commands=Move, events=Opened)


def test_a_decider_s_parts_fit() -> None:
    class OtherState(State):
        pass

    with pytest.raises(DefinitionError, match="initial state"):
        Decider("Box", initial=OtherState(), decide=decide, evolve=evolve, commands=Open, events=Opened)
    with pytest.raises(DefinitionError, match="annotate what evolve returns"):
        Decider("Box", initial=Box(None), decide=decide, evolve=lambda s, e: s, commands=Open, events=Opened)
    with pytest.raises(DefinitionError, match="aggregate type"):
        box("my box")
    with pytest.raises(DefinitionError, match="not a subclass of Command"):
        Decider("Box", initial=Box(None), decide=decide, evolve=evolve, commands=Opened, events=Opened)  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="upper case"):
        raise Rejected("lower", "no")


def test_a_new_version_needs_the_way_from_every_older_one() -> None:
    with pytest.raises(DefinitionError, match="needs upcasts"):

        class Bad(Event, name="Bad", version=3, upcasts={1: lambda data: data}):
            pass

    with pytest.raises(DefinitionError, match="name"):

        class Worse(Event, name="no spaces", version=1):
            pass


def test_old_versions_are_upcast_step_by_step() -> None:
    class Named(
        Event,
        name="Named",
        version=3,
        upcasts={
            1: lambda data: {"label": data["name"]},
            2: lambda data: {**data, "size": 7},
        },
    ):
        label: Label
        size: int

    schema = EventSchema([Named])
    for version, data in ((1, {"name": "x"}), (2, {"label": "x"}), (3, {"label": "x", "size": 7})):
        assert schema.load(schema.find("Named", version), version, data) == Named(Label("x"), 7)
    with pytest.raises(Unreadable, match="version 1"):
        schema.load(schema.find("Named", 1), 1, {"nothing": 1})


def test_personal_data_is_a_field_of_the_event_and_its_subject_is_text() -> None:
    class Nested(Event, name="Nested", version=1):
        part: Part

    class NoSubject(Event, name="NoSubject", version=1):
        subject: ClassVar[str] = "owner"
        label: Personal[Label]

    class Subject(Event, name="Subject", version=1):
        subject: ClassVar[str] = "owner"
        owner: str
        label: Personal[Label]

    with pytest.raises(DefinitionError, match=r"Nested\.part"):
        EventSchema([Nested])
    with pytest.raises(DefinitionError, match="subject must name"):
        EventSchema([NoSubject])
    assert EventSchema([Subject]).shape_of(Subject).subject_field == "owner"


def test_a_query_s_handler_is_annotated() -> None:
    async def untyped(arguments, read):  # type: ignore[no-untyped-def]
        await asyncio.sleep(0)

    with pytest.raises(DefinitionError, match="its handler is"):
        Query("boxes", untyped, reads=[boxes()], roles={"user"})
