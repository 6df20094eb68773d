"""The stored form of a commit, the same on every store: one JSON document and a checksum over it and its key.

Format 1: `{"commit", "at", "correlation", "causation", "actor", "events": [{"id", "type", "version", "data"}]}`.
Readable by `jq` and by SQL. A later format gets a new number; this one stays readable.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Final

import msgspec

from kiseki.journal.port import Commit, CommitMetadata, CorruptJournal
from kiseki.kernel.codec import EncodedEvent

__all__ = ["FORMAT", "checksum", "decode_commit", "encode_commit"]

FORMAT: Final = 1


class _Document(msgspec.Struct, frozen=True):
    commit: str
    at: datetime
    correlation: str
    causation: str | None
    actor: str
    events: tuple[EncodedEvent, ...]


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(_Document).decode


def encode_commit(metadata: CommitMetadata, events: tuple[EncodedEvent, ...]) -> bytes:
    """The document of a commit, UTF-8 JSON without line breaks."""
    return _encode(
        _Document(
            metadata.commit_id,
            metadata.committed_at,
            metadata.correlation_id,
            metadata.causation_id,
            metadata.actor,
            events,
        )
    )


def checksum(stream: str, first_sequence_number: int, document: bytes) -> str:
    """A hash over a commit's key and document (16 hex digits): finds damage and misplaced rows, not a forger."""
    return hashlib.blake2b(b"%s|%d|%s" % (stream.encode(), first_sequence_number, document), digest_size=8).hexdigest()


def decode_commit(stream: str, first_sequence_number: int, document: bytes, stored_checksum: str) -> Commit:
    """The commit of a stored document. Raises CorruptJournal when checksum or form is wrong."""
    if checksum(stream, first_sequence_number, document) != stored_checksum:
        raise CorruptJournal(
            f"the commit of {stream} at sequence number {first_sequence_number} is damaged (checksum); "
            "stop writing and run `kiseki journal verify`"
        )
    try:
        stored = _decode(document)
    except msgspec.DecodeError as problem:
        raise CorruptJournal(
            f"the commit of {stream} at sequence number {first_sequence_number} can't be read (format)"
        ) from problem
    return Commit(
        stream=stream,
        first_sequence_number=first_sequence_number,
        metadata=CommitMetadata(
            commit_id=stored.commit,
            committed_at=stored.at,
            correlation_id=stored.correlation,
            causation_id=stored.causation,
            actor=stored.actor,
        ),
        events=stored.events,
    )
