"""`create_backup`: one part of the live system, copied into a place whole or not at all. Used by the command line."""

from __future__ import annotations

import asyncio
from pathlib import Path

from kiseki._version import __version__
from kiseki.kernel.ports import Clock
from kiseki.operations.backup.catalog import Catalog, new_id, refuse_wrong_clock
from kiseki.operations.backup.manifest import FORMAT, Manifest, Part, StoredFile, digest_of, encode_manifest
from kiseki.operations.backup.port import PartBackups, Progress
from kiseki.operations.disk import explained_room
from kiseki.operations.places.port import LAST

__all__ = ["create_backup"]


async def create_backup(
    part: Part, driver: PartBackups, catalog: Catalog, *, clock: Clock, progress: Progress
) -> Manifest:
    """Makes a backup and gives its manifest. One operator at a time for each part and place.

    What fails leaves nothing behind that counts as a backup. Raises OperatorBusy, ClockWrong, NoRoom, PlaceUnavailable,
    and what the driver raises.
    """
    async with catalog.place.lock(f"{part}.lock"):
        started = clock.now()
        refuse_wrong_clock(await catalog.list(part), started)
        identity = new_id(started)
        name = f"{part}/{identity}"
        async with catalog.place.workspace(name) as folder:
            with explained_room(folder, "make room there"):
                made = await driver.make(folder, progress)
                progress("checksums")
                files = await asyncio.to_thread(_files, folder)
                manifest = Manifest(
                    format=FORMAT,
                    id=identity,
                    part=part,
                    kiseki=__version__,
                    started_at=started,
                    finished_at=clock.now(),
                    made=made,
                    files=files,
                )
                await asyncio.to_thread((folder / LAST).write_bytes, encode_manifest(manifest))
            progress("writing")
            await catalog.place.publish(folder, name)
    return manifest


def _files(folder: Path) -> tuple[StoredFile, ...]:
    return tuple(digest_of(path) for path in sorted(folder.iterdir()))
