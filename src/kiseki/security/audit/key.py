"""`AuditKey`: what records, anchors and manifests of the audit log are authenticated with.

Used by the log when it writes and by whoever verifies.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kiseki.kernel.errors import KisekiError

__all__ = ["MAC_HEX", "SHORTEST_SECRET", "AuditKey", "AuditKeyRefused", "AuditKeys"]

SHORTEST_SECRET: Final = 32
MAC_HEX: Final = 64

_LONGEST_FILE: Final = 4_096


class AuditKeyRefused(KisekiError):
    """The secret of the audit log can't be used as it is."""

    code = "AUDIT_KEY_REFUSED"


class AuditKey:
    """HMAC-SHA-256 (RFC 2104) under keys derived from one secret by HKDF (RFC 5869), one label for each use."""

    __slots__ = ("_anchor", "_manifest", "_record", "id")

    def __init__(self, secret: bytes) -> None:
        """`secret` is at least 32 random bytes; white space around it does not count, since files often end with a
        newline. Raises AuditKeyRefused for fewer."""
        secret = secret.strip()
        if len(secret) < SHORTEST_SECRET or len(set(secret)) < 8:
            raise AuditKeyRefused(
                f"the secret of the audit log is at least {SHORTEST_SECRET} random bytes; make one with "
                "`openssl rand -hex 32`"
            )
        self.id = _derive(secret, b"kiseki/audit/key-id/1")[:8].hex()
        self._record = _derive(secret, b"kiseki/audit/record/1")
        self._anchor = _derive(secret, b"kiseki/audit/anchor/1")
        self._manifest = _derive(secret, b"kiseki/audit/manifest/1")

    def __repr__(self) -> str:
        return f"AuditKey({self.id})"

    @classmethod
    def load_or_create(cls, path: Path) -> Self:
        """The key of a file that only its owner may read; one that is not there is made, random, mode 0600, durable.

        For the embedded default. Of processes that do so at once one makes it and all read the same. Raises
        AuditKeyRefused.
        """
        try:
            if not path.exists():
                _create(path)
            with path.open("rb") as file:
                about = os.fstat(file.fileno())
                if not stat.S_ISREG(about.st_mode):
                    raise AuditKeyRefused(f"the audit key {path} is not a file")
                if about.st_mode & 0o077:
                    raise AuditKeyRefused(f"others may use the audit key {path}: chmod 600 it")
                return cls(file.read(_LONGEST_FILE))
        except OSError as problem:
            raise AuditKeyRefused(f"the audit key {path} can't be used: {problem.strerror}") from problem

    def of_record(self, body: bytes) -> str:
        """The MAC of a record, 64 hex digits."""
        return hmac.digest(self._record, body, "sha256").hex()

    def of_anchor(self, body: bytes) -> str:
        """The MAC of an anchor, 64 hex digits."""
        return hmac.digest(self._anchor, body, "sha256").hex()

    def of_manifest(self, body: bytes) -> str:
        """The MAC of the manifest of an export, 64 hex digits."""
        return hmac.digest(self._manifest, body, "sha256").hex()


class AuditKeys:
    """The keys that a log is verified with: today's, and those of before a rotation."""

    __slots__ = ("_by_id", "current")

    def __init__(self, current: AuditKey, previous: Sequence[AuditKey] = ()) -> None:
        self.current = current
        self._by_id = {key.id: key for key in (*previous, current)}

    def get(self, key_id: str) -> AuditKey | None:
        """The key with this id."""
        return self._by_id.get(key_id)


def _derive(secret: bytes, label: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=label).derive(secret)


def _create(path: Path) -> None:
    """Makes the file under another name first: a crash, or another process, must never meet half a key."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.write(file, secrets.token_hex(SHORTEST_SECRET).encode())
            os.fsync(file)
        finally:
            os.close(file)
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            pass  # another process was first; its key is the one
    finally:
        draft.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
