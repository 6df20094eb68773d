"""`S3Lease`: one holder at a time of an object in a bucket, on any machine. Used by the place on S3.

It is an object that its holder writes again every minute, each time only if it is still what it wrote last
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html). One that was not written for five
minutes has lost its holder, and is taken over by the same compare-and-set. Ages are by the clock of S3 alone. A lease
that was given back stays as a small object that says so: removing it could remove that of the next holder.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import msgspec

from kiseki.operations.errors import OperationFailed, OperatorBusy, PlaceUnavailable
from kiseki.operations.places.holder import holder_line, shown_holder
from kiseki.operations.places.s3_bucket import CONFLICT, MISSING, Refused, S3Bucket
from kiseki.operations.places.s3_errors import time_there
from kiseki.operations.places.s3_transfer import S3Transfer

__all__ = ["PACE", "Pace", "S3Lease"]

_TRIES: Final = 3
_TAKEN: Final = "its lock was taken over by another"
_log = logging.getLogger(__name__)


class Pace(NamedTuple):
    """When a lease is renewed and when it is over, in seconds. They keep a distance: a holder that can't renew gives up
    before another takes over."""

    renew: float = 60.0
    give_up: float = 230.0
    one_try: float = 30.0
    stale: float = 300.0


PACE: Final = Pace()
"""What is in force everywhere but in tests."""


class _Content(msgspec.Struct, frozen=True):
    holder: str
    nonce: str
    count: int
    """Makes each writing different from the one before, so that its ETag is."""
    free: bool = False


class _Found(NamedTuple):
    content: _Content
    etag: str
    age: timedelta


class S3Lease:
    """One try to hold one lease; raises what `S3Bucket` does."""

    def __init__(self, bucket: S3Bucket, key: str, *, what: str, pace: Pace) -> None:
        """`what` is what messages call it."""
        self._bucket = bucket
        self._transfer = S3Transfer(bucket)
        self._key = key
        self._what = what
        self._pace = pace
        self.lost = ""
        """Why it is not held any more although it was not given back."""
        self._nonce = secrets.token_hex(16)
        self._holder = ""
        self._count = 0
        self._etag = ""
        self._writing = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Holds it for the time of the block, which is ended with OperationFailed should it be lost. Raises
        OperatorBusy at once when another holds it."""
        await self._take()
        task = asyncio.current_task()
        if task is None:
            raise AssertionError
        before = task.cancelling()

        async def beat() -> None:
            self.lost = await self._until_lost()
            task.cancel()

        beating = asyncio.create_task(beat(), name="S3 lease")
        try:
            try:
                yield
            finally:
                beating.cancel()
                await asyncio.wait([beating])
        except asyncio.CancelledError:
            if self.lost and task.uncancel() <= before:
                raise self._loss() from None
            raise
        finally:
            if not self.lost:
                await self._give_back()

    async def renew(self) -> None:
        """Proves that it is still held, at this moment. Raises OperationFailed when it is not."""
        if not await self._write(free=False):
            self.lost = _TAKEN
            raise self._loss()

    async def is_stale(self) -> bool:
        """Whether its holder is gone without giving it back, or it is not there at all."""
        found = await self._look()
        return found is None or found.content.free or found.age.total_seconds() > self._pace.stale

    def _loss(self) -> OperationFailed:
        return OperationFailed(f"{self._bucket.address.label}: {self._what}: {self.lost}; begin again")

    async def _take(self) -> None:
        self._holder = holder_line(datetime.now(UTC))
        found: _Found | None = None
        for _ in range(_TRIES):
            if await self._write(free=False):
                return
            found = await self._look()
            if found is None:
                self._etag = ""
                continue
            if not found.content.free and found.age.total_seconds() <= self._pace.stale:
                break
            self._etag = found.etag  # to be replaced if nobody else was quicker
        holder = shown_holder(found.content.holder.encode()) if found else "another who has just begun"
        minutes = self._pace.stale / 60
        raise OperatorBusy(
            f"{self._bucket.address.label}: {self._what} is held by {holder}; wait for its end, or "
            f"{minutes:.0f} minutes if it was killed, then begin again"
        )

    async def _write(self, *, free: bool) -> bool:
        """Writes it if it is what was seen last; whether it is ours now. An answer that got lost is not a loss."""
        async with self._writing:
            self._count += 1
            content = _Content(self._holder, self._nonce, self._count, free)
            condition = {"IfMatch": self._etag} if self._etag else {"IfNoneMatch": "*"}
            try:
                self._etag = await self._transfer.put(
                    self._key, msgspec.json.encode(content), expected=CONFLICT | MISSING, **condition
                )
            except Refused:
                found = await self._look()
                if found is None or found.content.nonce != self._nonce or found.content.free is not free:
                    return False
                self._etag = found.etag
            return True

    async def _look(self) -> _Found | None:
        read = await self._transfer.read(self._key)
        if read is None:
            return None
        data, answer = read
        now = time_there(answer)
        if now is None:
            raise PlaceUnavailable(
                f"{self._bucket.address.label}: its answers have no date, so the age of a lock can't be told; "
                f"look at what is between here and S3"
            )
        try:
            content = msgspec.json.decode(data, type=_Content)
        except msgspec.DecodeError:
            content = _Content("", "", 0)  # whoever wrote it: it holds as long as any other
        changed_at: datetime = answer["LastModified"]
        return _Found(content, str(answer["ETag"]), now - changed_at)

    async def _until_lost(self) -> str:
        """Renews it; why that is over."""
        now = asyncio.get_running_loop().time
        renewed = now()
        while True:
            await asyncio.sleep(min(self._pace.renew, max(self._pace.give_up - (now() - renewed), 0)))
            begun = now()
            try:
                async with asyncio.timeout(self._pace.one_try):
                    if not await self._write(free=False):
                        return _TAKEN
            except (PlaceUnavailable, OperationFailed, TimeoutError) as problem:
                if now() - renewed >= self._pace.give_up:
                    return "its lock could not be renewed"
                _log.warning("the lock of %s could not be renewed, trying again: %r", self._what, problem)
            else:
                renewed = begun

    async def _give_back(self) -> None:
        """What was done is done, so that a failure here is only told; the lease ends by itself."""
        try:
            async with asyncio.timeout(self._pace.one_try):
                if await self._write(free=True):
                    await self._bucket.drop_old(self._key)
        except (PlaceUnavailable, OperationFailed, TimeoutError) as problem:
            _log.warning("the lock of %s could not be given back, it ends by itself: %r", self._what, problem)
