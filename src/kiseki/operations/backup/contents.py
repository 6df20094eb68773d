"""`ContentsDigest`: says what a journal holds in a few numbers that are the same on every store and in every order.

Used by the drivers while they copy, and by `verify` and `restore` on what came out.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Final

from kiseki.operations.backup.manifest import Contents

__all__ = ["ContentsDigest"]

_MODULUS: Final = 1 << 256


class ContentsDigest:
    """Adds up commits. A sum of hashes (a multiset hash), because stores give commits in different orders."""

    def __init__(self, before: Contents | None = None) -> None:
        """`before`: what is there already, to go on from."""
        self._sum = 0 if before is None else int(before.digest, 16)
        self._commits = 0 if before is None else before.commits
        self._events = 0 if before is None else before.events
        self._streams = 0 if before is None else before.streams
        self._newest: datetime | None = None if before is None else before.newest

    def add(self, stream: str, first_sequence: int, count: int, document: bytes, committed_at: datetime) -> None:
        """Counts one commit: `document` as stored, `count` its events, `committed_at` UTC. Each commit once."""
        digest = hashlib.sha256(b"%s\x00%d\x00%s" % (stream.encode(), first_sequence, document)).digest()
        self._sum = (self._sum + int.from_bytes(digest)) % _MODULUS
        self._commits += 1
        self._events += count
        self._streams += first_sequence == 1
        if self._newest is None or committed_at > self._newest:
            self._newest = committed_at

    def contents(self, *, claims: int) -> Contents:
        """What was added, with the number of claims that are held."""
        return Contents(
            commits=self._commits,
            events=self._events,
            streams=self._streams,
            claims=claims,
            digest=f"{self._sum:064x}",
            newest=self._newest,
        )
