"""`S3Transfer`: objects to and from a bucket, with checksums, encrypted there, in bounded memory. For the place on S3.

Every upload carries a SHA-256, which S3 compares before it keeps anything
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp
from botocore.exceptions import BotoCoreError

from kiseki.operations.errors import OperationFailed, PlaceUnavailable
from kiseki.operations.places.disk import Disk, unreadable
from kiseki.operations.places.s3_bucket import MISSING, Refused, S3Bucket
from kiseki.operations.places.threads import in_thread

__all__ = ["PART", "S3Transfer"]

PART: Final = 16 << 20
"""Bytes: what is larger goes in parts, and this is their least size."""

_PARTS: Final = 10_000  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
_IN_MEMORY: Final = 4 * PART
_CHUNK: Final = 1 << 20
_TRIES: Final = 5
_log = logging.getLogger(__name__)


class S3Transfer:
    """Uploads and downloads. Every method raises what `S3Bucket` does."""

    def __init__(self, bucket: S3Bucket) -> None:
        self._bucket = bucket
        kms = bucket.address.kms
        self._encryption: dict[str, Any] = (
            {"ServerSideEncryption": "AES256"}
            if kms is None
            else {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms, "BucketKeyEnabled": True}
        )

    async def put(self, key: str, data: bytes, *, expected: frozenset[str] = frozenset(), **condition: str) -> str:
        """Writes an object, on a condition (`IfNoneMatch`, `IfMatch`); its new ETag. Raises Refused for `expected`."""
        answer = await self._bucket.call(
            "put_object",
            expected=expected,
            Key=key,
            Body=data,
            ChecksumSHA256=await asyncio.to_thread(_sha256, data),
            **self._encryption,
            **condition,
        )
        return str(answer["ETag"])

    async def upload(self, key: str, source: Path) -> None:
        """Writes a file as an object. Raises OperationFailed when it can't be read or changes meanwhile."""
        try:
            descriptor = await in_thread(lambda: os.open(source, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as problem:
            raise unreadable(source, problem) from problem
        try:
            size = os.fstat(descriptor).st_size
            if size <= PART:
                await self.put(key, await _slice(source, descriptor, 0, size))
            else:
                await self._upload_parts(key, source, descriptor, size)
        finally:
            os.close(descriptor)

    async def read(self, key: str) -> tuple[bytes, Mapping[str, Any]] | None:
        """A small object and the answer it came with; None when there is none."""
        for attempt in range(_TRIES):
            try:
                answer = await self._bucket.call("get_object", expected=MISSING, Key=key)
            except Refused:
                return None
            try:
                async with answer["Body"] as body:
                    data: bytes = await body.read()
            except (BotoCoreError, aiohttp.ClientError, OSError) as problem:
                await self._again(attempt, key, problem)
                continue
            if len(data) == answer.get("ContentLength"):
                return data, answer
            await self._again(attempt, key, None)
        raise AssertionError  # the last try raises

    async def download(self, key: str, target: Path, disk: Disk) -> bool:
        """Makes a file of an object, as large as that is; False when there is none. A connection that breaks is taken
        up again where it did. `disk` is where the file is."""
        with disk.explained(f"write {target.name}"):
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            return await self._fill(key, descriptor, disk)
        finally:
            os.close(descriptor)

    async def abort(self, key: str, upload: str) -> None:
        """Removes the parts of an upload that was not completed; again is fine."""
        try:
            await self._bucket.call("abort_multipart_upload", expected=MISSING, Key=key, UploadId=upload)
        except Refused:
            pass  # gone already

    async def _upload_parts(self, key: str, source: Path, descriptor: int, size: int) -> None:
        begun = await self._bucket.call(
            "create_multipart_upload",
            Key=key,
            ChecksumAlgorithm="SHA256",
            ChecksumType="COMPOSITE",
            **self._encryption,
        )
        upload = str(begun["UploadId"])
        try:
            step = max(PART, -(-size // _PARTS))
            slots = asyncio.Semaphore(max(1, _IN_MEMORY // step))

            async def part(number: int) -> Mapping[str, Any]:
                begin = (number - 1) * step
                async with slots:
                    data = await _slice(source, descriptor, begin, min(step, size - begin))
                    checksum = await asyncio.to_thread(_sha256, data)
                    answer = await self._bucket.call(
                        "upload_part", Key=key, UploadId=upload, PartNumber=number, Body=data, ChecksumSHA256=checksum
                    )
                return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum}

            parts = await _all_of([part(number) for number in range(1, -(-size // step) + 1)])
            await self._bucket.call(
                "complete_multipart_upload",
                Key=key,
                UploadId=upload,
                MultipartUpload={"Parts": parts},
                MpuObjectSize=size,
            )
        except BaseException:
            try:
                await self.abort(key, upload)
            except (PlaceUnavailable, OperationFailed) as problem:
                _log.warning("an upload that failed could not be removed, a later run tries again: %s", problem)
            raise

    async def _fill(self, key: str, descriptor: int, disk: Disk) -> bool:
        done = attempt = 0
        first: Mapping[str, Any] | None = None
        while True:
            request: dict[str, str] = {}
            if first is not None and done:
                request = {"IfMatch": first["ETag"], "Range": f"bytes={done}-"}
            try:
                answer = await self._bucket.call("get_object", expected=MISSING, Key=key, **request)
            except Refused:
                return False
            first = first or answer
            if done and "ContentRange" not in answer:  # all of it again
                os.lseek(descriptor, 0, os.SEEK_SET)
                done = 0
            before, problem = done, None
            try:
                async with answer["Body"] as body:
                    while chunk := await _chunk(body):
                        with disk.explained(f"write {self._bucket.address.name(key)}"):
                            await in_thread(lambda chunk=chunk: _write(descriptor, chunk))  # type: ignore[misc]
                        done += len(chunk)
            except (BotoCoreError, aiohttp.ClientError, OSError) as broken:
                problem = broken
            if done == first.get("ContentLength"):
                return True
            attempt = 0 if done > before else attempt
            await self._again(attempt, key, problem)
            attempt += 1

    async def _again(self, attempt: int, key: str, problem: Exception | None) -> None:
        """Waits before another try. Raises PlaceUnavailable after the last."""
        if attempt + 1 == _TRIES:
            address = self._bucket.address
            raise PlaceUnavailable(
                f"{address.label}: {address.name(key)} broke off {_TRIES} times while it was read; look at network and "
                f"proxy, then begin again"
            ) from problem
        await asyncio.sleep(random.uniform(0, 0.05 * 3**attempt))  # noqa: S311  # no secret


async def _all_of(works: list[Any]) -> list[Any]:
    """The results of all, in order; the first failure ends the others, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except BaseExceptionGroup as problems:
        raise problems.exceptions[0] from None
    return [task.result() for task in tasks]


async def _slice(source: Path, descriptor: int, begin: int, size: int) -> bytes:
    def read() -> bytes:
        data = b""
        while len(data) < size and (more := os.pread(descriptor, size - len(data), begin + len(data))):
            data = data + more if data else more
        return data

    try:
        data = await in_thread(read)
    except OSError as problem:
        raise unreadable(source, problem) from problem
    if len(data) < size:
        raise OperationFailed(f"{source} became shorter while it was read; see that nothing else writes it")
    return data


async def _chunk(body: Any) -> bytes:
    """The next megabyte; less at the end. What comes before a break counts only when it is a whole one."""
    gathered = bytearray()
    while len(gathered) < _CHUNK and (piece := await body.read(_CHUNK - len(gathered))):
        gathered += piece
    return bytes(gathered)


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sha256(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()
