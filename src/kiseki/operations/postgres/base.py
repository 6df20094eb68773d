"""Base backups of a whole cluster: made by pg_basebackup, looked at by pg_verifybackup, packed, kept in a place.

Used by the protection and by recovery.
"""

from __future__ import annotations

import asyncio
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from kiseki._version import __version__
from kiseki.clients.postgres import PostgresAddress
from kiseki.kernel.ports import Clock
from kiseki.operations.backup.catalog import new_id
from kiseki.operations.backup.manifest import FORMAT, Made, Manifest, Part, decode_manifest, digest_of, encode_manifest
from kiseki.operations.backup.port import Progress
from kiseki.operations.disk import explained_room
from kiseki.operations.errors import BackupDamaged, OperationFailed
from kiseki.operations.places.port import LAST, Place
from kiseki.operations.postgres.cluster import Cluster, mark_of
from kiseki.operations.postgres.programs import PostgresPrograms
from kiseki.operations.postgres.session import explained_server, session
from kiseki.operations.postgres.wal import BASES, Segment, segment_of

__all__ = [
    "BASES",
    "Bases",
    "first_segment",
    "is_of",
    "last_segment",
    "packed_files",
    "segment_bytes",
    "unpack_base",
]

_PACKED: Final = "base.tar.gz"
_CHECKSUMS: Final = "backup_manifest"


class _Range(msgspec.Struct, rename={"timeline": "Timeline", "start": "Start-LSN", "end": "End-LSN"}):
    timeline: int
    start: str
    end: str


class _Written(msgspec.Struct, rename={"ranges": "WAL-Ranges"}):
    ranges: list[_Range]


class Bases:
    """The base backups in a place. Raises PlaceUnavailable."""

    def __init__(self, place: Place) -> None:
        self._place = place

    async def list(self) -> Sequence[Manifest]:
        """Those that are whole, oldest first."""
        found = []
        for stored in await self._place.names(f"{BASES}/"):
            if stored.name.endswith(f"/{LAST}"):
                data = await self._place.read(stored.name)
                if data is not None:
                    found.append(decode_manifest(data, where=stored.name))
        return sorted(found, key=lambda manifest: manifest.finished_at)

    async def remove(self, manifest: Manifest) -> None:
        """Removes one; again is fine."""
        await self._place.remove(f"{BASES}/{manifest.id}")

    async def make(
        self,
        address: PostgresAddress,
        programs: PostgresPrograms,
        cluster: Cluster,
        *,
        clock: Clock,
        holds: Sequence[str],
        days: float,
        progress: Progress,
    ) -> Manifest:
        """Makes one; the log since its start has to be kept elsewhere too. Raises NoRoom, OperationFailed, ToolMissing,
        Unavailable."""
        started = clock.now()
        name = f"{BASES}/{new_id(started)}"
        take = await programs.find("pg_basebackup", at_least=cluster.major)
        look = await programs.find("pg_verifybackup", exactly=cluster.major)
        async with self._place.workspace(name) as folder:
            with explained_room(folder, "make room there"):
                data = folder / "data"
                progress("base backup")
                # Not synced: what lasts is the packed file.
                await programs.run(
                    take,
                    [f"--pgdata={data}", "--wal-method=stream", "--checkpoint=fast", "--manifest-checksums=SHA256",
                     "--no-sync", "--no-password"],
                    address=address,
                )  # fmt: skip
                with explained_server(address, "the base backup"):
                    async with session(address) as connection:
                        mark = await mark_of(connection)
                progress("verifying the base backup")
                await programs.run(look, ["--quiet", str(data)])
                progress("packing the base backup")
                made = Made(
                    store="postgresql",
                    method="base",
                    as_of=mark.at,
                    versions={"postgresql": cluster.version},
                    references={**await asyncio.to_thread(_references, data, cluster), **_rules(holds, days)},
                )
                await asyncio.to_thread(_pack, data, folder / _PACKED)
                manifest = Manifest(
                    format=FORMAT,
                    id=name.rpartition("/")[2],
                    part=Part.JOURNAL,
                    kiseki=__version__,
                    started_at=started,
                    finished_at=clock.now(),
                    made=made,
                    files=(await asyncio.to_thread(digest_of, folder / _PACKED),),
                )
                await asyncio.to_thread((folder / LAST).write_bytes, encode_manifest(manifest))
            progress("writing the base backup")
            await self._place.publish(folder, name)
        return manifest


def _references(data: Path, cluster: Cluster) -> dict[str, str]:
    try:
        ranges = msgspec.json.decode((data / _CHECKSUMS).read_bytes(), type=_Written).ranges
    except msgspec.DecodeError as problem:
        raise OperationFailed("pg_basebackup wrote a manifest that can't be read") from problem
    if len(ranges) != 1:
        raise OperationFailed("the timeline changed during the base backup; run the same again")
    return {
        "system": cluster.system,
        "timeline": str(ranges[0].timeline),
        "segment": str(cluster.segment),
        "start": ranges[0].start,
        "end": ranges[0].end,
    }


def _rules(holds: Sequence[str], days: float) -> dict[str, str]:
    return {"days": f"{days:g}", **({"holds": ", ".join(holds)} if holds else {})}


def _pack(data: Path, target: Path) -> None:
    """Packs a data directory and removes it: two of them need room for a moment only."""

    def nobody(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(target, "w:gz", compresslevel=1) as packed:
        packed.add(data, arcname="data", filter=nobody)
    shutil.rmtree(data)


def unpack_base(packed: Path, work: Path, manifest: Manifest) -> Path:
    """Unpacks a base backup into a folder: its data directory. Blocks; raises BackupDamaged, OSError."""
    file = packed / _PACKED
    if digest_of(file) != manifest.files[0]:
        raise BackupDamaged(f"the base backup {manifest.id} is truncated or altered; recover to a time before it")
    with tarfile.open(file, "r:gz") as archive:
        archive.extractall(work, filter="data")
    data = work / "data"
    for path in (data, *data.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return data


def packed_files(manifest: Manifest) -> list[str]:
    """What has to be fetched of it."""
    return [file.name for file in manifest.files]


def first_segment(manifest: Manifest) -> Segment:
    """Where the log has to begin for a base backup to be of use."""
    given = manifest.made.references
    return segment_of(given["start"], int(given["timeline"]), int(given["segment"]))


def last_segment(manifest: Manifest) -> Segment:
    """Up to where it needs the log at least."""
    given = manifest.made.references
    return segment_of(given["end"], int(given["timeline"]), int(given["segment"]))


def is_of(manifest: Manifest, cluster: Cluster) -> bool:
    """Whether it is of this life of the cluster."""
    given = manifest.made.references
    return (given["system"], given["timeline"]) == (cluster.system, str(cluster.timeline))


def segment_bytes(manifest: Manifest) -> int:
    """Bytes of a file of the log."""
    return int(manifest.made.references["segment"])
