"""The program under test: kiseki's write side on its embedded stores, every accepted command marked in the ACK file.

    kiseki_workload.py DIRECTORY SYNCHRONOUS CALLERS COMMANDS

Each caller creates an account and renames it again and again. Snapshots are taken every few events and the log is
checkpointed often, so that cuts fall into both. SYNCHRONOUS other than FULL weakens the journal's connections, to
prove that the test can fail.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from kiseki.application.commands import CommandSettings, command_handler
from kiseki.application.system import SystemClock, UlidSource
from kiseki.command.handler import CommandHandler, CommandRequest
from kiseki.journal.sqlite import connection as sqlite_connection
from kiseki.journal.sqlite import reader, schema, writer
from kiseki.journal.sqlite.journal import SqliteJournal
from kiseki.kernel.streams import StreamId
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.security.master_key import LocalMasterKey
from kiseki.security.protector import KeyProtector
from kiseki.security.sqlite_key_store import SqliteKeyStore
from kiseki.users import app
from kiseki.users.user_account import CreateUserAccount, EmailAddress, FirstName, LastName, RenameUserAccount

SNAPSHOT_EVERY = 5


async def open_protector(directory: Path, stack: AsyncExitStack) -> KeyProtector:
    """The key store of a data directory."""
    store = await SqliteKeyStore.open(directory / "keys.sqlite")
    stack.push_async_callback(store.close)
    wrapper = LocalMasterKey.load_or_create(directory / "master.key")
    return await KeyProtector.open(store=store, wrapper=wrapper, clock=SystemClock())


async def open_journal(directory: Path, stack: AsyncExitStack) -> SqliteJournal:
    """The journal of a data directory."""
    journal = await SqliteJournal.open(directory / "journal.sqlite", clock=SystemClock(), telemetry=NoTelemetry())
    stack.push_async_callback(journal.close)
    return journal


async def run(directory: Path, callers: int, commands: int) -> None:
    async with AsyncExitStack() as stack:
        protector = await open_protector(directory, stack)
        journal = await open_journal(directory, stack)
        handler = command_handler(
            app,
            journal=journal,
            snapshots=journal,
            protector=protector,
            clock=SystemClock(),
            ids=UlidSource(),
            telemetry=NoTelemetry(),
            settings=CommandSettings(snapshot_every=SNAPSHOT_EVERY),
        )
        marks = os.open(directory / "ACK", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        await asyncio.gather(*(call(handler, marks, caller, commands) for caller in range(callers)))
        await handler.close()
        os.close(marks)


async def call(handler: CommandHandler, marks: int, caller: int, commands: int) -> None:
    request = CommandRequest(actor="powercut", correlation_id=f"caller-{caller}")
    first_name = FirstName(f"太郎{caller}")
    create = CreateUserAccount(first_name, LastName("name 1"), EmailAddress(f"taro{caller}@example.com"))
    result = await handler.handle(create, request)
    account = StreamId(result.stream_id)
    os.write(marks, f"{result.stream} {result.sequence_number} name {result.sequence_number}\n".encode())
    for number in range(2, commands + 1):
        result = await handler.handle(RenameUserAccount(account, first_name, LastName(f"name {number}")), request)
        os.write(marks, f"{result.stream} {result.sequence_number} name {number}\n".encode())


def weakened(connect: Callable[..., sqlite3.Connection], synchronous: str) -> Callable[..., sqlite3.Connection]:
    """Opens connections as kiseki does, and then takes their safety away."""

    def open_weakly(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.execute("PRAGMA wal_autocheckpoint=40")
        if synchronous != "FULL":
            connection.execute({"OFF": "PRAGMA synchronous=OFF", "NORMAL": "PRAGMA synchronous=NORMAL"}[synchronous])
        return connection

    return open_weakly


def main(arguments: list[str]) -> None:
    directory, synchronous = Path(arguments[0]), arguments[1]
    callers, commands = (int(argument) for argument in arguments[2:4])
    opened = weakened(sqlite_connection.connect, synchronous)
    with ExitStack() as patched:
        for module in (schema, writer, reader):
            patched.enter_context(mock.patch.object(module, "connect", opened))
        asyncio.run(run(directory, callers, commands))


if __name__ == "__main__":
    main(sys.argv[1:])
