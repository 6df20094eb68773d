"""Reading the file of a moved journal, page by page; everything that an export does not write is refused.

Used by `import`.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from typing import BinaryIO, Final, NamedTuple

import msgspec

from kiseki.journal.format import FORMAT, decode_commit, encode_commit
from kiseki.journal.port import CorruptJournal, IdempotencyRecord
from kiseki.journal.transfer.lines import (
    FILE_FORMAT,
    ClaimLine,
    CommitLine,
    Counts,
    Header,
    HeaderLine,
    Line,
    RecordLine,
    StoredCommit,
    encode_line,
)
from kiseki.journal.transfer.transferable import HeldClaim, TransferFailed, TransferFileDamaged, why

__all__ = ["TransferPage", "TransferReader"]

_PAGE_LINES: Final = 500
_PAGE_BYTES: Final = 4_000_000
_LINE_BYTES: Final = 64_000_000
"""No line is longer than this; it bounds memory when a file without line breaks is read."""

_decode_header: Final = msgspec.json.Decoder(Header).decode
_decode_header_line: Final = msgspec.json.Decoder(HeaderLine).decode
_decode_line: Final = msgspec.json.Decoder[Line](Line).decode
_decode_text: Final = msgspec.json.Decoder(str).decode


class TransferPage(NamedTuple):
    """Some lines of a file, in their order: commits, then claims, then records."""

    commits: list[StoredCommit]
    claims: list[HeldClaim]
    records: list[IdempotencyRecord]


class TransferReader:
    """Reads a file from its start, page by page, and refuses everything that an export does not write. Blocks."""

    def __init__(self, source: BinaryIO) -> None:
        """`source` may be compressed with gzip. Raises TransferFileDamaged, TransferFailed when it can't be read."""
        self.counts: Counts | None = None
        """What the file holds; known, and checked but for `streams`, once `page` has given None."""
        self._line_number = self._commits = self._events = self._claims = self._records = 0
        self._hash = hashlib.sha256()
        try:
            source.seek(0)
            compressed = source.read(2) == b"\x1f\x8b"
            source.seek(0)
        except OSError as problem:
            raise TransferFailed(f"the file can't be read: {why(problem)}") from problem
        self._source: BinaryIO | gzip.GzipFile = gzip.GzipFile(fileobj=source, mode="rb") if compressed else source
        self._header(self._line())

    def page(self) -> TransferPage | None:
        """The next lines; None after the last one. Raises TransferFileDamaged, TransferFailed."""
        if self.counts is not None:
            return None
        page, size = TransferPage([], [], []), 0
        for _ in range(_PAGE_LINES):
            text = self._line()
            try:
                line = _decode_line(text)
            except (msgspec.DecodeError, UnicodeDecodeError) as problem:
                raise self._damaged("it is not what an export writes") from problem
            if isinstance(line, Counts):
                self._end(line, text)
                break
            self._hash.update(text)
            self._take(line, page)
            size += len(text)
            if size > _PAGE_BYTES:
                break
        return page

    def _take(self, line: CommitLine | ClaimLine | RecordLine, page: TransferPage) -> None:
        if isinstance(line, CommitLine) and not self._claims and not self._records:
            page.commits.append(self._commit(line))
            self._commits += 1
            self._events += len(page.commits[-1].commit.events)
        elif isinstance(line, ClaimLine) and not self._records:
            page.claims.append(HeldClaim(line.scope, line.digest, line.stream))
            self._claims += 1
        elif isinstance(line, RecordLine):
            page.records.append(
                IdempotencyRecord(
                    key=line.key,
                    command_hash=line.command_hash,
                    stream=line.stream,
                    sequence_number=line.sequence,
                    expires_at=line.expires_at,
                )
            )
            self._records += 1
        else:
            raise self._damaged("it is not in its place: commits come first, then claims, then idempotency records")

    def _header(self, text: bytes) -> None:
        try:
            header = _decode_header(text)
            if header.format != FILE_FORMAT:
                raise TransferFailed(
                    f"the file has format {header.format}; this kiseki reads {FILE_FORMAT}: "
                    "use the kiseki that wrote it"
                )
            _decode_header_line(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            raise TransferFileDamaged(
                "line 1 is not the first line of a journal export; is it the right file?"
            ) from problem
        self._hash.update(text)

    def _commit(self, line: CommitLine) -> StoredCommit:
        if line.format != FORMAT:
            raise TransferFailed(
                f"line {self._line_number} holds a commit of format {line.format}; this kiseki reads {FORMAT}"
            )
        document = bytes(line.document)
        try:
            if document.startswith(b'"'):
                document = _decode_text(document).encode()
            commit = decode_commit(line.stream, line.sequence, document, line.checksum)
        except (CorruptJournal, msgspec.DecodeError, UnicodeDecodeError) as problem:
            raise self._damaged(f"the commit of {line.stream[:300]!a} is not what its checksum says") from problem
        if encode_commit(commit.metadata, commit.events) != document:
            raise self._damaged("its document would be stored otherwise than it is written")
        return StoredCommit(commit, document)

    def _end(self, line: Counts, text: bytes) -> None:
        if line.digest != self._hash.hexdigest():
            raise TransferFileDamaged("the file's digest is wrong: it was changed or damaged; export again")
        counted = (self._commits, self._events, self._claims, self._records)
        if (line.commits, line.events, line.claims, line.records) != counted or text != encode_line(line) + b"\n":
            raise self._damaged("it does not say what the file holds")
        self.counts = line
        if self._read_line():
            raise TransferFileDamaged(f"the file goes on after its last line, {self._line_number}; export again")

    def _line(self) -> bytes:
        text = self._read_line()
        if text.endswith(b"\n"):
            self._line_number += 1
            return text
        if len(text) >= _LINE_BYTES:
            self._line_number += 1
            raise self._damaged("it is too long for an export")
        raise TransferFileDamaged(
            f"the file was cut off after line {self._line_number}; export again, or copy it anew"
            if self._line_number
            else "the file is no journal export: it has not even one line"
        )

    def _read_line(self) -> bytes:
        try:
            return self._source.readline(_LINE_BYTES)
        except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
            raise TransferFileDamaged(
                f"the compressed file is damaged or was cut off after line {self._line_number}; export again, "
                "or copy it anew"
            ) from problem
        except OSError as problem:
            raise TransferFailed(f"the file can't be read after line {self._line_number}: {why(problem)}") from problem

    def _damaged(self, what: str) -> TransferFileDamaged:
        return TransferFileDamaged(f"line {self._line_number} is damaged: {what}; export again, or copy it anew")
