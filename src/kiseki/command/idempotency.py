"""Idempotency keys: the same command again under the same key gives the first answer, also across processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import msgspec

from kiseki.command.errors import IdempotencyInFlight, IdempotencyMismatch
from kiseki.journal.port import IdempotencyRecord, Journal
from kiseki.kernel.ports import Clock, Protector

__all__ = ["IdempotencyKey", "IdempotencyKeys"]


class IdempotencyKey(msgspec.Struct, frozen=True):
    """A client's key and whose it is: the same text from two subjects is two keys."""

    subject: str
    key: str


class IdempotencyKeys:
    """Recalls what keyed commands did. Records are kept for `hours`, in the commit of their command."""

    def __init__(self, *, journal: Journal, protector: Protector, clock: Clock, hours: float) -> None:
        self._journal = journal
        self._protector = protector
        self._clock = clock
        self._keep = timedelta(hours=hours)
        self._in_flight: set[str] = set()

    def digest(self, key: IdempotencyKey) -> str:
        """What is stored instead of the key."""
        return self._protector.digest("idempotency-key", f"{key.subject}\n{key.key}")

    def command_hash(self, name: str, dumped: object) -> str:
        """A keyed hash of a typed command: commands hold personal data that a plain hash would let one guess."""
        return self._protector.digest(
            "command", f"{name}\n{msgspec.json.encode(dumped, order='deterministic').decode()}"
        )

    @contextmanager
    def exclusively(self, digest: str) -> Iterator[None]:
        """Holds a key while its command is handled in this process. Raises IdempotencyInFlight."""
        if digest in self._in_flight:
            raise IdempotencyInFlight("a request with this Idempotency-Key is still being handled; try again shortly")
        self._in_flight.add(digest)
        try:
            yield
        finally:
            self._in_flight.discard(digest)

    async def recall(self, digest: str, command_hash: str) -> IdempotencyRecord | None:
        """What the key did before. Raises IdempotencyMismatch when that was another command, JournalUnavailable."""
        record = await self._journal.recall(digest)
        if record is not None and record.command_hash != command_hash:
            raise IdempotencyMismatch("this Idempotency-Key was used before with another command")
        return record

    def record(self, digest: str, command_hash: str, stream: str, sequence_number: int) -> IdempotencyRecord:
        """The record that goes into the commit."""
        return IdempotencyRecord(
            key=digest,
            command_hash=command_hash,
            stream=stream,
            sequence_number=sequence_number,
            expires_at=self._clock.now() + self._keep,
        )
