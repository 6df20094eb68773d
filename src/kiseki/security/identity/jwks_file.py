"""A key set in a file, read again when the file changes. Used by the composition root, as loader of `RefreshedKeys`."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Collection
from pathlib import Path

from kiseki.security.identity.compact import ALGORITHMS
from kiseki.security.identity.jwks import MAX_JWKS_BYTES, parse_jwks
from kiseki.security.identity.key_sources import KeysUnavailable
from kiseki.security.identity.keys import KeySet

__all__ = ["JwksFile"]


class JwksFile:
    """A KeyLoader. HS256 secrets in the file count only when nobody but its owner may use it."""

    def __init__(self, path: Path, *, algorithms: Collection[str] = ALGORITHMS, rsa_algorithm: str = "RS256") -> None:
        """`algorithms` and `rsa_algorithm` as of `parse_jwks`."""
        self.name = f"the key set {path.name}"
        self._path = path
        self._algorithms = algorithms
        self._rsa_algorithm = rsa_algorithm
        self._seen: tuple[int, ...] | None = None

    async def load(self) -> KeySet | None:
        """As KeyLoader; reads on another thread."""
        return await asyncio.to_thread(self._load)

    def _load(self) -> KeySet | None:
        try:
            # Not blocking: a pipe in its place would wait for a writer.
            file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                about = os.fstat(file)
                if not stat.S_ISREG(about.st_mode):
                    raise KeysUnavailable(f"{self.name} is not a file")
                seen = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
                if seen == self._seen:
                    return None
                document = _read(file)
            finally:
                os.close(file)
        except OSError as problem:
            raise KeysUnavailable(f"{self.name} can't be read: {problem.strerror}") from problem
        keys = parse_jwks(
            document,
            where=self._path.name,
            algorithms=self._algorithms,
            rsa_algorithm=self._rsa_algorithm,
            secrets=not about.st_mode & 0o077,
        )
        self._seen = seen
        return keys


def _read(file: int) -> bytes:
    """Up to one byte more than a key set may have."""
    pieces = b""
    while len(pieces) <= MAX_JWKS_BYTES:
        piece = os.read(file, MAX_JWKS_BYTES + 1 - len(pieces))
        if not piece:
            break
        pieces += piece
    return pieces
