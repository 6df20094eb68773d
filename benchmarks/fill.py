"""Fills a journal quickly, through its own `append`: for figures of backups and for drills.

usage: python -m benchmarks.fill PATH EVENTS
"""

import asyncio
import hashlib
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from kiseki.application.system import SystemClock
from kiseki.journal.port import ClaimChange, CommitMetadata, IdempotencyRecord, Journal
from kiseki.journal.sqlite.journal import SqliteJournal
from kiseki.kernel.codec import EncodedEvent
from kiseki.kernel.telemetry import NoTelemetry

__all__ = ["fill", "fill_sqlite"]

_CALLERS: Final = 1024
_PER_STREAM: Final = 4
_KEYED_EVERY: Final = 10
_KEPT: Final = timedelta(hours=24)


async def fill(journal: Journal, events: int, *, seed: str = "fill", since: datetime | None = None) -> None:
    """Appends so many events, one in each commit and up to four in each stream, as accounts would look: about 500 bytes
    each, half of them sealed (so they hardly compress), a claim in the first commit of each stream, an idempotency
    record in every tenth commit. `since` is when the first was decided (UTC), the others follow by a millisecond.

    With the same seed the same streams: use another for a journal that was filled before. Raises what `append` raises.
    """
    streams = iter(range(0, events, _PER_STREAM))
    began = since or datetime.now(UTC)

    async def one_after_the_other() -> None:
        for first in streams:
            await _stream(journal, seed, first, min(_PER_STREAM, events - first), began)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(_CALLERS, events)):
            group.create_task(one_after_the_other())


async def _stream(journal: Journal, seed: str, first: int, count: int, began: datetime) -> None:
    stream = f"UserAccount-{_hash(seed, first)[:26]}"
    for after in range(count):
        number = first + after
        at = began + timedelta(milliseconds=number)
        identity = _hash(seed, "commit", number)[:26]
        sealed = _hash(seed, "data", number) + _hash(seed, "more", number) + _hash(seed, "rest", number)
        data = msgspec.json.encode({"name": {"$sealed": sealed}, "emailAddress": {"$sealed": sealed[:64]}})
        event = EncodedEvent(
            f"{identity}", "UserAccountRenamed" if after else "UserAccountCreated", 1, msgspec.Raw(data)
        )
        record = None
        if number % _KEYED_EVERY == 0:
            record = IdempotencyRecord(
                key=_hash(seed, "key", number),
                command_hash=_hash(seed, "command", number),
                stream=stream,
                sequence_number=after + 1,
                expires_at=at + _KEPT,
            )
        await journal.append(
            stream,
            after,
            [event],
            metadata=CommitMetadata(
                commit_id=identity, committed_at=at, correlation_id=identity, actor=_hash(seed, first)[:32]
            ),
            claims=() if after else (ClaimChange("emailAddress", _hash(seed, "claim", first), take=True),),
            idempotency=record,
        )


def _hash(*parts: object) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


def fill_sqlite(path: Path, events: int, *, seed: str = "fill") -> None:
    """`fill` for the SQLite journal at a path, which is made when it is not there. Blocks."""

    async def run() -> None:
        journal = await SqliteJournal.open(path, clock=SystemClock(), telemetry=NoTelemetry())
        try:
            await fill(journal, events, seed=seed)
        finally:
            await journal.close()

    uvloop.run(run())


if __name__ == "__main__":
    started = time.perf_counter()
    fill_sqlite(Path(sys.argv[1]), int(sys.argv[2]))
    print(f"{int(sys.argv[2]) / (time.perf_counter() - started):,.0f} events/s")
