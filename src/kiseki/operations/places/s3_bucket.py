"""`S3Bucket`: calls to one bucket, whose failures are errors of operations; listing, and removing every version.

Opened on the first call, which also looks whether the bucket is there and in the region of the setting. Used by the
place on S3, its transfers and its leases. Needs the extra `kiseki[aws]`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, NamedTuple

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError

from kiseki.operations.errors import OperationFailed, PlaceUnavailable
from kiseki.operations.places.s3_address import S3Address
from kiseki.operations.places.s3_errors import explain, wrong_region

__all__ = ["CONFLICT", "MISSING", "Refused", "S3Bucket", "Version"]

MISSING: Final = frozenset({"NoSuchKey", "404", "NoSuchUpload"})
"""Codes that mean that an object is not there."""
CONFLICT: Final = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict", "409"})
"""Codes that mean that a condition did not hold, or that another wrote at the same moment."""

_DELETED_AT_ONCE: Final = 1000
_CONNECT_SECONDS: Final = 5
_READ_SECONDS: Final = 60
_ATTEMPTS: Final = 4


class Refused(Exception):
    """A call was refused with a code that its caller asked for."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Version(NamedTuple):
    """One version of an object, or a marker that says that it was removed."""

    key: str
    id: str
    is_latest: bool


class S3Bucket:
    """One bucket. Belongs to one event loop. Every method raises PlaceUnavailable, NoRoom, ClockWrong and
    OperationFailed."""

    def __init__(self, address: S3Address, *, setting: str) -> None:
        """`setting` is named where a message says what to change."""
        self.address = address
        self._setting = setting
        self._opening = asyncio.Lock()
        self._opened = AsyncExitStack()
        self._client: Any = None
        self._closed = False

    async def call(self, operation: str, *, expected: Collection[str] = (), **request: Any) -> Mapping[str, Any]:
        """The answer to an operation of the library (`put_object`). Raises Refused for codes that are `expected`."""
        client = self._client if self._client is not None else await self._open()
        return await self._ask(client, operation, expected, request)

    async def objects(self, prefix: str) -> AsyncIterator[Mapping[str, Any]]:
        """All objects whose key begins so, by key."""
        more: dict[str, str] = {}
        while True:
            answer = await self.call("list_objects_v2", Prefix=prefix, **more)
            for each in answer.get("Contents", ()):
                yield each
            if not answer.get("IsTruncated"):
                return
            more = {"ContinuationToken": answer["NextContinuationToken"]}

    async def versions(self, prefix: str) -> AsyncIterator[Version]:
        """All versions of objects whose key begins so, by key; without versioning that is one of each."""
        more: dict[str, str] = {}
        while True:
            answer = await self.call("list_object_versions", Prefix=prefix, **more)
            found = [*answer.get("Versions", ()), *answer.get("DeleteMarkers", ())]
            for each in sorted(found, key=lambda each: str(each["Key"])):
                yield Version(each["Key"], each["VersionId"], each["IsLatest"])
            if not answer.get("IsTruncated"):
                return
            more = {"KeyMarker": answer["NextKeyMarker"]}
            if answer.get("NextVersionIdMarker"):
                more["VersionIdMarker"] = answer["NextVersionIdMarker"]

    async def versions_of(self, key: str) -> Sequence[Version]:
        """All versions of one object."""
        found = []
        async for version in self.versions(key):
            if version.key != key:
                break
            found.append(version)
        return found

    async def drop_old(self, key: str) -> None:
        """Removes what an object was before: it may be keys of people who were erased since."""
        await self.delete([version for version in await self.versions_of(key) if not version.is_latest])

    async def delete(self, versions: Sequence[Version]) -> None:
        """Removes versions for good."""
        for begin in range(0, len(versions), _DELETED_AT_ONCE):
            some = [{"Key": each.key, "VersionId": each.id} for each in versions[begin : begin + _DELETED_AT_ONCE]]
            answer = await self.call("delete_objects", Delete={"Objects": some, "Quiet": True})
            for error in answer.get("Errors", ()):
                await self._not_deleted(error)

    async def close(self) -> None:
        """Lets go of connections; again is fine."""
        self._closed, self._client = True, None
        await self._opened.aclose()

    async def _not_deleted(self, error: Mapping[str, Any]) -> None:
        code, key = str(error.get("Code", "")), str(error["Key"])
        where = f"{self.address.label}: {self.address.name(key)}"
        if code == "AccessDenied":
            lock = await self._object_lock(key, str(error["VersionId"])) if error.get("VersionId") else None
            if lock is not None or "object lock" in str(error.get("Message", "")).lower():
                raise OperationFailed(
                    f"{where} can't be removed: the bucket's object lock keeps it{lock or ''}, so what is erased stays "
                    f"there longer than promised; set {self._setting} to a bucket without object lock"
                )
            raise PlaceUnavailable(f"{where} can't be removed: give this account s3:DeleteObjectVersion on it")
        if code not in ("NoSuchKey", "NoSuchVersion"):
            raise PlaceUnavailable(f"{where} was not removed ({code[:60]}); begin again")

    async def _object_lock(self, key: str, version: str) -> str | None:
        """How object lock keeps a version, when it does and when this account may know."""
        try:
            answer = await self.call(
                "head_object", expected=MISSING | {"403", "AccessDenied", "405"}, Key=key, VersionId=version
            )
        except Refused:
            return None
        if answer.get("ObjectLockLegalHoldStatus") == "ON":
            return " (legal hold)"
        until = answer.get("ObjectLockRetainUntilDate")
        return None if until is None else f" until {until:%Y-%m-%d}"

    async def _open(self) -> Any:
        async with self._opening:
            if self._closed:
                raise PlaceUnavailable(f"{self.address.label} is closed; open it again")
            if self._client is None:
                async with AsyncExitStack() as opened:
                    client = await self._connected(opened)
                    await self._check(client)
                    self._opened, self._client = opened.pop_all(), client
            return self._client

    async def _connected(self, opened: AsyncExitStack) -> Any:
        address = self.address
        config = AioConfig(
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            max_pool_connections=16,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            # Names of buckets are part of the host's name only where AWS's own servers are asked.
            s3={"addressing_style": "path" if address.endpoint else "auto"},
            ignore_configured_endpoint_urls=True,  # backups go where the setting says, nowhere else
        )
        try:
            session = await asyncio.to_thread(get_session)  # reads files and imports much
            return await opened.enter_async_context(
                session.create_client("s3", region_name=address.region, endpoint_url=address.endpoint, config=config)
            )
        except (BotoCoreError, ClientError, OSError, ValueError) as problem:
            raise explain(problem, "opening", address=address, setting=self._setting) from problem

    async def _check(self, client: Any) -> None:
        """The library follows a bucket to another region; the setting is to be right instead."""
        answer = await self._ask(client, "head_bucket", (), {})
        there = answer["ResponseMetadata"].get("HTTPHeaders", {}).get("x-amz-bucket-region", self.address.region)
        if there != self.address.region:
            why = wrong_region(there, self.address, self._setting)
            raise PlaceUnavailable(f"{self.address.label}: {why}")

    async def _ask(
        self, client: Any, operation: str, expected: Collection[str], request: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        try:
            answer: Mapping[str, Any] = await getattr(client, operation)(Bucket=self.address.bucket, **request)
        except ClientError as problem:
            code = str(problem.response.get("Error", {}).get("Code", ""))
            if code in expected:
                raise Refused(code) from problem
            raise explain(problem, operation, address=self.address, setting=self._setting) from problem
        except (BotoCoreError, OSError, aiohttp.ClientError) as problem:
            raise explain(problem, operation, address=self.address, setting=self._setting) from problem
        return answer
