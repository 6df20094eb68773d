"""`S3Place`: backups under a prefix of a bucket. Opened by `open_place`; needs the extra `kiseki[aws]`.

A folder is published under a lease on `<name>/.part`: while that is there and the manifest is not, it is unfinished. To
remove is to remove every version: copies of keys must not outlive their retention in a bucket that keeps versions.
The account needs s3:ListBucket, ListBucketVersions, ListBucketMultipartUploads, ListMultipartUploadParts, GetObject,
PutObject, DeleteObject, DeleteObjectVersion and AbortMultipartUpload.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from kiseki.operations.errors import BackupDamaged, OperationFailed, PlaceUnavailable
from kiseki.operations.places.disk import flat_files, unreadable
from kiseki.operations.places.names import checked_name, checked_prefix, is_hidden
from kiseki.operations.places.port import LAST, Stored
from kiseki.operations.places.s3_address import S3Address
from kiseki.operations.places.s3_bucket import CONFLICT, MISSING, Refused, S3Bucket, Version
from kiseki.operations.places.s3_errors import time_there
from kiseki.operations.places.s3_lease import PACE, Pace, S3Lease
from kiseki.operations.places.s3_transfer import S3Transfer
from kiseki.operations.places.scratch import Scratch
from kiseki.operations.places.threads import in_thread

__all__ = ["S3Place"]

_MARK: Final = ".part"
_LOCKS: Final = ".locks"
_UPLOAD_ENDS: Final = timedelta(hours=1)
"""An upload that got no part for so long is nobody's any more."""
_log = logging.getLogger(__name__)


class S3Place:
    """Everything under a prefix. Belongs to one event loop; connects on first use."""

    def __init__(self, address: S3Address, *, setting: str, pace: Pace = PACE) -> None:
        """`setting` is named where a message says what to change."""
        self.label = address.label
        self._address = address
        self._bucket = S3Bucket(address, setting=setting)
        self._transfer = S3Transfer(self._bucket)
        self._scratch = Scratch()
        self._pace = pace
        self._swept = False

    @asynccontextmanager
    async def workspace(self, name: str) -> AsyncIterator[Path]:
        """As the port says."""
        checked_name(name)
        await self._sweep_uploads()
        await self._sweep_folders(name.rpartition("/")[0])
        async with self._scratch.folder(name) as folder:
            yield folder

    async def publish(self, folder: Path, name: str) -> None:
        """As the port says."""
        checked_name(name)
        try:
            files = await in_thread(lambda: flat_files(folder))
            manifest = await in_thread(files[-1].read_bytes)
        except OSError as problem:
            raise unreadable(folder, problem) from problem
        await self._refuse_second(name)
        lease, mine = self._lease(f"{name}/{_MARK}", name), False
        try:
            async with lease.held():
                mine = True
                await self._refuse_second(name)  # nobody else publishes from here on
                await self._upload(name, files, manifest, lease)
        finally:
            if mine and not lease.lost:
                await self._drop_mark(name)

    @asynccontextmanager
    async def fetched(self, name: str, files: Sequence[str]) -> AsyncIterator[Path]:
        """As the port says."""
        checked_name(name)
        for file in files:
            checked_name(file)
        async with self._scratch.folder(name) as folder:
            for file in files:
                if not await self._transfer.download(self._key(f"{name}/{file}"), folder / file, self._scratch.disk):
                    raise BackupDamaged(f"{self.label}: {name} has no file {file} (any more); use another backup")
            yield folder

    async def read(self, name: str) -> bytes | None:
        """As the port says."""
        read = await self._transfer.read(self._key(checked_name(name)))
        return None if read is None else read[0]

    async def write(self, name: str, data: bytes) -> None:
        """As the port says."""
        key = self._key(checked_name(name))
        await self._transfer.put(key, data)
        await self._bucket.drop_old(key)

    async def put(self, name: str, source: Path) -> None:
        """As the port says."""
        key = self._key(checked_name(name))
        await self._sweep_uploads()
        await self._transfer.upload(key, source)
        await self._bucket.drop_old(key)

    async def names(self, prefix: str = "") -> Sequence[Stored]:
        """As the port says."""
        folder, _ = checked_prefix(prefix)
        found, unfinished = await self._listed(folder)
        return [
            each
            for each in found
            if each.name.startswith(prefix)
            and each.name.rpartition("/")[0] not in unfinished
            and not is_hidden(each.name)
        ]

    async def remove(self, name: str) -> None:
        """As the port says. Raises OperationFailed when the bucket's object lock forbids it."""
        await self._remove(checked_name(name))

    def lock(self, name: str) -> AbstractAsyncContextManager[None]:
        """As the port says."""
        return self._lease(f"{_LOCKS}/{checked_name(name)}", name).held()

    async def close(self) -> None:
        """As the port says."""
        await self._bucket.close()

    def _key(self, name: str) -> str:
        return self._address.key(name)

    def _lease(self, name: str, what: str) -> S3Lease:
        return S3Lease(self._bucket, self._key(name), what=what, pace=self._pace)

    async def _upload(self, name: str, files: Sequence[Path], manifest: bytes, lease: S3Lease) -> None:
        try:
            await self._remove(name, keep=_MARK)
            for file in files[:-1]:
                await self._transfer.upload(self._key(f"{name}/{file.name}"), file)
            await lease.renew()
            await self._put_last(name, manifest)
        except BaseException:
            if not lease.lost:  # else it is another's
                await self._take_back(name)
            raise

    async def _refuse_second(self, name: str) -> None:
        try:
            await self._bucket.call("head_object", expected=MISSING, Key=self._key(f"{name}/{LAST}"))
        except Refused:
            return
        raise self._is_there(name)

    def _is_there(self, name: str) -> OperationFailed:
        return OperationFailed(f"{self.label}: there is a {name} already; it stays; use a new name")

    async def _put_last(self, name: str, manifest: bytes) -> None:
        key = self._key(f"{name}/{LAST}")
        try:
            await self._transfer.put(key, manifest, expected=CONFLICT, IfNoneMatch="*")
        except Refused:
            # The library repeats what got no answer, and meets what it wrote itself.
            read = await self._transfer.read(key)
            if read is None or read[0] != manifest:
                raise self._is_there(name) from None

    async def _take_back(self, name: str) -> None:
        """Removes what was uploaded, unless its end is there all the same; a later run does what fails here."""
        try:
            if await self._transfer.read(self._key(f"{name}/{LAST}")) is None:
                await self._remove(name, keep=_MARK)
        except (PlaceUnavailable, OperationFailed) as problem:
            _log.warning("the unfinished %s could not be removed, a later run tries again: %s", name, problem)

    async def _drop_mark(self, name: str) -> None:
        """It does no harm beside a manifest, so that a failure here is only told."""
        try:
            await self._bucket.delete(await self._bucket.versions_of(self._key(f"{name}/{_MARK}")))
        except (PlaceUnavailable, OperationFailed) as problem:
            _log.warning("the mark of %s could not be removed: %s", name, problem)

    async def _listed(self, folder: str) -> tuple[list[Stored], set[str]]:
        """All that is stored in a folder and below, and which folders in it are unfinished."""
        found, marked, finished = [], set(), set()
        async for each in self._bucket.objects(self._key(f"{folder}/") if folder else self._key("")):
            name = self._address.name(each["Key"])
            into, _, last = name.rpartition("/")
            if last == _MARK:
                marked.add(into)
            if last == LAST:
                finished.add(into)
            if last and not name.startswith("/"):
                found.append(Stored(name, each["Size"], each["LastModified"].astimezone(UTC)))
        return found, marked - finished

    async def _sweep_folders(self, parent: str) -> None:
        """Removes what killed runs had not published to the end."""
        _, unfinished = await self._listed(parent)
        for name in sorted(unfinished):
            if await self._lease(f"{name}/{_MARK}", name).is_stale():
                await self._remove(name)

    async def _sweep_uploads(self) -> None:
        """Removes the parts of large files whose upload a killed run had not completed; once in a process."""
        if self._swept:
            return
        self._swept = True
        more: dict[str, str] = {}
        while True:
            answer = await self._bucket.call("list_multipart_uploads", Prefix=self._key(""), **more)
            now = time_there(answer)
            for each in answer.get("Uploads", ()):
                if now is not None and now - each["Initiated"] > _UPLOAD_ENDS:
                    await self._abort_if_left(each["Key"], each["UploadId"], now)
            if not answer.get("IsTruncated"):
                return
            more = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}

    async def _abort_if_left(self, key: str, upload: str, now: datetime) -> None:
        newest: datetime | None = None
        marker = 0
        try:
            while True:
                answer = await self._bucket.call(
                    "list_parts", expected=MISSING, Key=key, UploadId=upload, PartNumberMarker=marker
                )
                for part in answer.get("Parts", ()):
                    newest = max(newest or part["LastModified"], part["LastModified"])
                if not answer.get("IsTruncated"):
                    break
                marker = answer["NextPartNumberMarker"]
        except Refused:
            return  # completed meanwhile
        if newest is None or now - newest > _UPLOAD_ENDS:
            await self._transfer.abort(key, upload)

    async def _remove(self, name: str, *, keep: str = "") -> None:
        key = self._key(name)
        last: list[Version] = []
        rest = list(await self._bucket.versions_of(key))
        async for version in self._bucket.versions(f"{key}/"):
            file = version.key.rpartition("/")[2]
            if not keep or file != keep:
                (last if file == LAST else rest).append(version)
        await self._bucket.delete(last)
        await self._bucket.delete(rest)
