"""A process that backs up, verifies or restores a journal on DynamoDB, and is killed (SIGKILL) in the middle of it.

    killed_run.py <tables URL> <folder> <manifest> make|verify|switch <operation>

It dies when it has done that operation of DynamoDB for the first time; `in-force` is the write of a switch, before it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kiseki.clients.dynamodb import DynamoDbAddress, DynamoDbClient
from kiseki.operations.backup.manifest import decode_manifest
from kiseki.operations.backup.port import nothing
from kiseki.operations.dynamodb.journal import DynamoDbJournalBackups
from tests.integration.journal.sqlite_parts import RealClock


def _die_at(wanted: str) -> None:
    through = DynamoDbClient.call

    async def call(client: DynamoDbClient, operation: str, request: Mapping[str, Any], **rest: Any) -> dict[str, Any]:
        if wanted == "in-force" and "generation" in request.get("Item", {}):
            os.kill(os.getpid(), signal.SIGKILL)
        answer = await through(client, operation, request, **rest)
        if operation == wanted:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(DynamoDbClient, "call", call)  # noqa: B010  # this process is for that


async def _run(url: str, folder: Path, manifest: Path, what: str) -> None:
    backups = DynamoDbJournalBackups(DynamoDbAddress.parse(url), clock=RealClock(), writers_stopped=True)
    if what == "make":
        await backups.make(folder, nothing)
        return
    known = decode_manifest(await asyncio.to_thread(manifest.read_bytes), where="the test")
    if what == "verify":
        async with backups.opened(folder, known):
            return
    await (await backups.stage(folder, known, nothing)).switch()


if __name__ == "__main__":
    _die_at(sys.argv[5])
    asyncio.run(_run(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]))
