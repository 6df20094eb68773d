"""A process that makes, stages or switches a backup of a PostgreSQL journal and says what it does, to be killed.

usage: backup_process.py make|stage|protect URL PROGRAMS FOLDER
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec

from kiseki.clients.postgres import PostgresAddress
from kiseki.operations.backup.manifest import Made
from kiseki.operations.places.folder import FolderPlace
from kiseki.operations.postgres.journal import PostgresJournalBackups
from kiseki.operations.postgres.programs import PostgresPrograms
from kiseki.operations.postgres.protection import PostgresProtection
from kiseki.operations.postgres.scratch import Scratch
from tests.integration.operations.postgres.postgres_backup_parts import CLOCK, SCHEMA, manifest_of


def say(what: str) -> None:
    print(what, flush=True)


async def run(what: str, url: str, programs: str, folder: str) -> None:
    address = PostgresAddress.parse(url, schema=SCHEMA)
    tools, place = PostgresPrograms(Path(programs)), Path(folder)
    if what == "protect":
        protection = PostgresProtection(
            address, tools, FolderPlace(place / "place", setting="x"), clock=CLOCK, days=7, spool=place / "spool"
        )
        while True:
            await protection.step(say)
            say(f"receiver {protection.receiver.process_id}")
    driver = PostgresJournalBackups(address, tools, clock=CLOCK, scratch=Scratch(folder=place))
    if what == "make":
        await driver.make(place, say)
    else:
        made = msgspec.json.decode((place / "made.json").read_bytes(), type=Made)
        await driver.stage(place, manifest_of(made), say)
    say("done")


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:]))
