"""`opened_backup`: the files of a backup, fetched and compared with their checksums. Used by `verify` and `restore`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kiseki.operations.backup.catalog import Catalog
from kiseki.operations.backup.manifest import Manifest, digest_of
from kiseki.operations.backup.port import Progress
from kiseki.operations.errors import BackupDamaged

__all__ = ["opened_backup"]


@asynccontextmanager
async def opened_backup(catalog: Catalog, manifest: Manifest, progress: Progress) -> AsyncIterator[Path]:
    """A local folder with the files, each as it was written, for the time of the block.

    Raises BackupDamaged, which names the file, PlaceUnavailable, NoRoom.
    """
    name = f"{manifest.part}/{manifest.id}"
    progress("fetching")
    async with catalog.place.fetched(name, [file.name for file in manifest.files]) as folder:
        progress("checksums")
        for file in manifest.files:
            try:
                there = await asyncio.to_thread(digest_of, folder / file.name)
            except FileNotFoundError:
                raise BackupDamaged(f"the backup {name} lacks {file.name}; use another one") from None
            if there.bytes < file.bytes:
                raise BackupDamaged(
                    f"the backup {name} is truncated: {file.name} has {there.bytes:,} of {file.bytes:,} bytes; use "
                    "another one"
                )
            if there != file:
                raise BackupDamaged(
                    f"the backup {name} was altered: {file.name} is not what was written; use another one"
                )
        yield folder
