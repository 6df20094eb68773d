"""Runs `kiseki` commands that end by themselves, and services for as long as a test needs them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.e2e.processes import Service

APPLICATION = """
from sqlalchemy import Column, MetaData, String, Table, insert

from kiseki import Application, Command, Context, Decider, Event, Projection, State, Text


class Title(Text, max_length=50):
    pass


class NoteWritten(Event, name="NoteWritten", version=1):
    title: Title


class WriteNote(Command):
    title: Title


class Notes(State):
    pass


notes = Table("notes", MetaData(schema="notes"), Column("id", String, primary_key=True), Column("COLUMN", String))


def apply(event, metadata):
    return [insert(notes).values({"id": metadata.stream_id, "COLUMN": event.title})]


def evolve(state: Notes, event: NoteWritten) -> Notes:
    return state


note = Decider(
    "Note",
    initial=Notes(),
    decide=lambda command, state: [NoteWritten(title=command.title)],
    evolve=evolve,
    commands=WriteNote,
    events=NoteWritten,
)
read_model = Projection("notes", version=1, tables=[notes], events=NoteWritten, apply=apply)
app = Application([Context("notes", deciders=[note], projections=[read_model], access={WriteNote: {"user"}})])
"""


@asynccontextmanager
async def running(service: Service) -> AsyncIterator[Service]:
    service.start()
    try:
        await service.ready()
        yield service
    finally:
        service.kill()


async def eventually(condition: Callable[[], Any]) -> Any:
    async with asyncio.timeout(30):
        while not (found := condition()):
            await asyncio.sleep(0.02)
        return found


def kiseki_in(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """As `kiseki`, with an environment that is at hand."""
    return kiseki(*arguments, cwd=None, **environment)


def kiseki(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command that is to end by itself."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("KISEKI_")}
    return subprocess.run(
        [sys.executable, "-m", "kiseki", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=cwd,
        env={**inherited, **environment},
    )


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that failed."""
    assert done.returncode != 0
    assert done.stderr.startswith("kiseki: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def free() -> Sequence[str]:
    return ("--command-port", "0", "--query-port", "0", "--management-port", "0")
