"""The manifest of a backup: what it is of, when, what its files are, and what has to be in them.

Written last, read first. Used by everything that makes, lists, verifies, restores or removes backups.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from kiseki.operations.errors import BackupDamaged

__all__ = [
    "FORMAT",
    "Contents",
    "Made",
    "Manifest",
    "Part",
    "StoredFile",
    "decode_manifest",
    "digest_of",
    "encode_manifest",
]

FORMAT: Final = 1
_CHUNK: Final = 1 << 20


class Part(enum.StrEnum):
    """What is backed up by itself, with its own place and retention."""

    JOURNAL = "journal"
    AUDIT = "audit"
    KEYS = "keys"
    READ_MODELS = "read-models"


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What a journal holds, independent of the store and of any order."""

    commits: int
    events: int
    streams: int
    claims: int
    digest: str
    """The sum, modulo 2^256, of the SHA-256 of every commit (its stream, number and document); 64 hex digits."""
    newest: datetime | None
    """When its newest commit was decided (UTC)."""


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What the store's driver says of a copy that it made."""

    store: str
    """sqlite, postgresql, dynamodb or files."""
    method: str
    """online, dump, base, on-demand, point-in-time, continuous."""
    as_of: datetime
    """All that was durable at this time (UTC) is in it."""
    versions: Mapping[str, str] = {}
    """Of the store's programs and of the stored forms."""
    position: str = ""
    """Where the journal's feed was."""
    contents: Contents | None = None
    """What has to be in it; None where the store makes its copy without a view of one moment."""
    counts: Mapping[str, int] = {}
    """What other parts hold: keys, erasures, records, …"""
    digest: str = ""
    """Over what other parts hold; the driver says how."""
    journal_life: str = ""
    """Of read models: the life of the journal that they were copied in (`TransferableJournal.life`)."""
    references: Mapping[str, str] = {}
    """What is kept elsewhere, by what it is: names of backups in AWS."""


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a backup."""

    name: str
    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is known of a backup without reading it."""

    format: int
    id: str
    part: Part
    kiseki: str
    """The release that made it."""
    started_at: datetime
    finished_at: datetime
    made: Made
    files: tuple[StoredFile, ...]


_decode: Final = msgspec.json.Decoder(Manifest).decode


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as it is stored, readable by people."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode_manifest(data: bytes, *, where: str) -> Manifest:
    """The manifest that was stored. Raises BackupDamaged."""
    try:
        manifest = _decode(data)
    except msgspec.DecodeError as problem:
        raise BackupDamaged(f"the manifest of {where} can't be read; take another backup") from problem
    if manifest.format != FORMAT:
        raise BackupDamaged(
            f"the backup {where} has format {manifest.format}; use the kiseki that made it, or a newer one"
        )
    return manifest


def digest_of(path: Path) -> StoredFile:
    """Size and checksum of a file. Blocks; raises OSError."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return StoredFile(name=path.name, bytes=size, sha256=digest.hexdigest())
