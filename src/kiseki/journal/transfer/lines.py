"""The file of a moved journal: what its lines are, and writing them.

    {"kind":"kiseki-journal","format":1,"exported_at":…}
    {"kind":"commit","stream":…,"sequence":…,"format":…,"checksum":…,"document":{…}}       commits, in feed order
    {"kind":"claim","scope":…,"digest":…,"stream":…}                                       claims that are held
    {"kind":"idempotency","key":…,"command_hash":…,"stream":…,"sequence":…,"expires_at":…} unexpired records
    {"kind":"end","commits":…,"events":…,"streams":…,"claims":…,"records":…,"digest":…}

UTF-8, one line each. `document` is the stored document, byte for byte (`journal/format.py`), as its checksum covers
these bytes; one that holds line breaks is a string with its text. `digest` is the SHA-256 of all lines before the last.
Used by `export`, and by `reader`, which reads it back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, BinaryIO, Final, NamedTuple, TypeAlias

import msgspec

from kiseki.journal.format import FORMAT, checksum, encode_commit
from kiseki.journal.port import Commit, IdempotencyRecord
from kiseki.journal.transfer.transferable import HeldClaim

__all__ = [
    "FILE_FORMAT",
    "ClaimLine",
    "CommitLine",
    "Counts",
    "Header",
    "HeaderLine",
    "Line",
    "RecordLine",
    "StoredCommit",
    "TransferWriter",
    "encode_line",
    "stored",
]

FILE_FORMAT: Final = 1

_Sequence: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]


class StoredCommit(NamedTuple):
    """A commit and the document that a store keeps of it."""

    commit: Commit
    document: bytes


class Header(msgspec.Struct, frozen=True, tag_field="kind", tag="kiseki-journal"):
    """The first line as any format has it."""

    format: int


class HeaderLine(Header, frozen=True, tag_field="kind", tag="kiseki-journal", forbid_unknown_fields=True):
    """The first line of this format."""

    exported_at: datetime


class CommitLine(msgspec.Struct, frozen=True, tag_field="kind", tag="commit", forbid_unknown_fields=True):
    """A commit: its key, and the document with its checksum."""

    stream: str
    sequence: _Sequence
    """Of the first event."""
    format: int
    checksum: str
    document: msgspec.Raw


class ClaimLine(msgspec.Struct, frozen=True, tag_field="kind", tag="claim", forbid_unknown_fields=True):
    """A claim that a stream holds."""

    scope: str
    digest: str
    stream: str


class RecordLine(msgspec.Struct, frozen=True, tag_field="kind", tag="idempotency", forbid_unknown_fields=True):
    """An idempotency record."""

    key: str
    command_hash: str
    stream: str
    sequence: _Sequence
    expires_at: datetime


class Counts(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="end", forbid_unknown_fields=True):
    """The last line: what the file holds."""

    commits: int
    events: int
    streams: int
    claims: int
    records: int
    digest: str
    """SHA-256 over all lines before this one, in hex."""


Line: TypeAlias = CommitLine | ClaimLine | RecordLine | Counts

encode_line: Final = msgspec.json.Encoder().encode
"""A line without its line break."""


def stored(commit: Commit) -> StoredCommit:
    """A commit with its document."""
    return StoredCommit(commit, encode_commit(commit.metadata, commit.events))


class TransferWriter:
    """Writes the lines of one file, in their order. Blocks; raises OSError."""

    def __init__(self, output: BinaryIO, exported_at: datetime) -> None:
        """Writes the header. `exported_at` is UTC."""
        self._output = output
        self._hash = hashlib.sha256()
        self.commits = self.events = self.claims = self.records = 0
        self._write([encode_line(HeaderLine(FILE_FORMAT, exported_at))])

    def write_commits(self, commits: Iterable[StoredCommit]) -> None:
        """Writes commits, each once, those of a stream in their order."""
        lines = []
        for commit, document in commits:
            stream, first = commit.stream, commit.first_sequence_number
            text = msgspec.Raw(encode_line(document.decode()) if b"\n" in document else document)
            lines.append(encode_line(CommitLine(stream, first, FORMAT, checksum(stream, first, document), text)))
            self.events += len(commit.events)
        self.commits += len(lines)
        self._write(lines)

    def write_claims(self, claims: Iterable[HeldClaim]) -> None:
        """Writes claims, after all commits."""
        lines = [encode_line(ClaimLine(claim.scope, claim.digest, claim.stream)) for claim in claims]
        self.claims += len(lines)
        self._write(lines)

    def write_records(self, records: Iterable[IdempotencyRecord]) -> None:
        """Writes idempotency records, after all claims."""
        lines = [
            encode_line(RecordLine(r.key, r.command_hash, r.stream, r.sequence_number, r.expires_at)) for r in records
        ]
        self.records += len(lines)
        self._write(lines)

    def finish(self, streams: int) -> Counts:
        """Writes the last line, which says that the file is whole."""
        counts = Counts(
            commits=self.commits,
            events=self.events,
            streams=streams,
            claims=self.claims,
            records=self.records,
            digest=self._hash.hexdigest(),
        )
        self._write([encode_line(counts)])
        return counts

    def _write(self, lines: list[bytes]) -> None:
        if lines:
            text = b"\n".join([*lines, b""])
            self._hash.update(text)
            self._output.write(text)
