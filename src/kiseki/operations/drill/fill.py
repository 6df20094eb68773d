"""`fill`: gives a journal a history of the shipped accounts, through the command handler, as real clients would have.

Used by the drill, and by measurements that need a journal of a certain size.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from typing import Final

from kiseki.application.commands import CommandSettings, command_handler
from kiseki.application.system import SystemClock, UlidSource
from kiseki.command.handler import CommandHandler, CommandRequest
from kiseki.kernel.streams import StreamId
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.service.stores import Stores
from kiseki.users import app
from kiseki.users.user_account import CreateUserAccount, EmailAddress, FirstName, LastName, RenameUserAccount

__all__ = ["fill"]

_CALLERS: Final = 64
_RENAMES: Final = 9
_EVERY: Final = 10_000
_REQUEST: Final = CommandRequest(actor="drill", correlation_id="drill")


async def fill(stores: Stores, events: int, progress: Callable[[str], None]) -> int:
    """Adds at least so many events, ten to an account; how many. Raises Unavailable."""
    handler = command_handler(
        app,
        journal=stores.journal,
        snapshots=stores.journal,
        protector=stores.protector,
        clock=SystemClock(),
        ids=UlidSource(),
        telemetry=NoTelemetry(),
        settings=CommandSettings(cache_capacity=4 * _CALLERS),
    )
    numbers = iter(count(1))
    accounts = -(-events // (_RENAMES + 1))
    done = 0

    async def caller() -> None:
        nonlocal done
        while (number := next(numbers)) <= accounts:
            await _account(handler, number)
            done += _RENAMES + 1
            if done % _EVERY < _RENAMES + 1:
                progress(f"filling, {done:,} events")

    try:
        async with asyncio.TaskGroup() as callers:
            for _ in range(_CALLERS):
                callers.create_task(caller())
    finally:
        await handler.close()
    return done


async def _account(handler: CommandHandler, number: int) -> None:
    first, address = FirstName("Drill"), EmailAddress(f"filled-{number}@example.com")
    created = await handler.handle(
        CreateUserAccount(first_name=first, last_name=LastName("Number 0"), email_address=address), _REQUEST
    )
    account = StreamId(created.stream_id)
    for turn in range(1, _RENAMES + 1):
        name = LastName(f"Number {turn}")
        await handler.handle(RenameUserAccount(user_account_id=account, first_name=first, last_name=name), _REQUEST)
