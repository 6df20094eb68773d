"""Master keys wrap what the key store holds: the port `KeyWrapper`, and a local key in a file.

Key management services are other implementations of the port.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kiseki.kernel.errors import KisekiError, Unavailable

__all__ = [
    "MASTER_KEY_BYTES",
    "KeyWrapper",
    "LocalMasterKey",
    "MasterKey",
    "MasterKeyMissing",
    "MasterKeyRefused",
    "MasterKeyUnavailable",
    "WrappedKeyBroken",
    "wrapped_by",
]

MASTER_KEY_BYTES: Final = 32

_NONCE_BYTES: Final = 12
_NAME: Final = re.compile(r"[!-~]{1,2048}")
_FORMAT: Final = b"kiseki-wrapped-1|"


class MasterKeyRefused(KisekiError):
    """A master key can't be used as it is, or its setting can't be understood."""

    code = "MASTER_KEY_REFUSED"


class MasterKeyMissing(KisekiError):
    """A key was wrapped by a master key that this process does not have."""

    code = "MASTER_KEY_MISSING"


class MasterKeyUnavailable(Unavailable):
    """The service that has the master key can't be used now; what is cached goes on until its time is up."""

    code = "MASTER_KEY_UNAVAILABLE"


class WrappedKeyBroken(KisekiError):
    """A wrapped key was altered, or belongs to another subject."""

    code = "WRAPPED_KEY_BROKEN"


class KeyWrapper(Protocol):
    """Wraps keys with a master key.

    The wrapped form starts with the master key's id and a zero byte, whoever wrapped it, so that anyone can tell what
    reads it (`wrapped_by`). An implementation unwraps what its older master keys wrapped as long as it has them. For
    all kinds see `master_keys`.
    """

    @property
    def key_id(self) -> str:
        """The id of the master key that wraps: printable ASCII without spaces."""
        ...

    async def wrap(self, plain: bytes, context: bytes) -> bytes:
        """The wrapped form, bound to the context. Raises Unavailable."""
        ...

    async def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """What was wrapped. Raises MasterKeyMissing, WrappedKeyBroken, Unavailable."""
        ...


class MasterKey(KeyWrapper, Protocol):
    """One master key of some kind, among others."""

    def reads(self, key_id: str) -> bool:
        """Whether it unwraps what the master key of this id wrapped."""
        ...

    async def close(self) -> None:
        """Lets go of connections; again is fine."""
        ...


def wrapped_by(wrapped: bytes) -> str:
    """The id of the master key in a wrapped form. Raises WrappedKeyBroken when there is none."""
    name, separator, _ = wrapped.partition(b"\0")
    try:
        key_id = name.decode("ascii")
    except UnicodeDecodeError:
        key_id = ""
    if not separator or not _NAME.fullmatch(key_id):
        raise WrappedKeyBroken("a wrapped key does not name its master key")
    return key_id


class LocalMasterKey:
    """A master key in this process's memory (a KeyWrapper); wraps with AES-256-GCM under a random 96-bit nonce.

    Rotate before 2^32 keys were wrapped (NIST SP 800-38D, 8.3). The key that wraps and the id are derived from the
    file's bytes by HKDF (RFC 5869) with separate labels, so the id tells nothing of the key.
    """

    def __init__(self, key: bytes, *, previous: Sequence[bytes] = ()) -> None:
        """`previous` are older master keys, only read with. Raises MasterKeyRefused unless each has 32 bytes."""
        for each in (key, *previous):
            if len(each) != MASTER_KEY_BYTES:
                raise MasterKeyRefused(f"a master key is {MASTER_KEY_BYTES} bytes, not {len(each)}")
        self.key_id = _id_of(key)
        self._ciphers = {_id_of(each): AESGCM(_derive(each, b"kiseki/wrap/1")) for each in (key, *previous)}

    @classmethod
    def load(cls, path: Path, *, previous: Sequence[Path] = ()) -> Self:
        """The key in a file of exactly 32 bytes that only its owner may read. Raises MasterKeyRefused."""
        return cls(_read(path), previous=[_read(each) for each in previous])

    @classmethod
    def load_or_create(cls, path: Path, *, previous: Sequence[Path] = ()) -> Self:
        """As `load`; a file that is not there is first made in its directory, mode 0600 and durable, with a random key.

        Of processes that do so at once one makes it and all read the same. Raises MasterKeyRefused.
        """
        try:
            if not path.exists():
                _create(path)
            # Also when another process made it: nothing may be wrapped by a key that a power cut can take away.
            _sync_directory(path.parent)
        except OSError as problem:
            raise MasterKeyRefused(f"the master key {path} can't be made: {problem.strerror}") from problem
        return cls.load(path, previous=previous)

    def reads(self, key_id: str) -> bool:
        """As MasterKey."""
        return key_id in self._ciphers

    async def close(self) -> None:
        """As MasterKey: nothing to do."""

    async def wrap(self, plain: bytes, context: bytes) -> bytes:
        """As KeyWrapper; does not suspend."""
        nonce = os.urandom(_NONCE_BYTES)
        cipher = self._ciphers[self.key_id]
        return b"%b\0%b%b" % (self.key_id.encode(), nonce, cipher.encrypt(nonce, plain, _FORMAT + context))

    async def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """As KeyWrapper; does not suspend."""
        key_id = wrapped_by(wrapped)
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise MasterKeyMissing(
                f"a key was wrapped by the master key {key_id}; this process has {', '.join(self._ciphers)}"
            )
        body = wrapped[len(key_id) + 1 :]
        try:
            return cipher.decrypt(body[:_NONCE_BYTES], body[_NONCE_BYTES:], _FORMAT + context)
        except (InvalidTag, ValueError):
            raise WrappedKeyBroken("a wrapped key was altered, or belongs to another subject") from None


def _derive(key: bytes, label: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=label).derive(key)


def _id_of(key: bytes) -> str:
    return f"local-{_derive(key, b'kiseki/master-key-id/1')[:8].hex()}"


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise MasterKeyRefused(f"the master key {path} is not a file")
            if about.st_mode & 0o077:
                raise MasterKeyRefused(f"others may use the master key {path}: chmod 600 it")
            key = file.read(MASTER_KEY_BYTES + 1)
    except OSError as problem:
        raise MasterKeyRefused(f"the master key {path} can't be read: {problem.strerror}") from problem
    if len(key) != MASTER_KEY_BYTES or about.st_size != MASTER_KEY_BYTES:
        raise MasterKeyRefused(f"the master key {path} must hold {MASTER_KEY_BYTES} bytes, not {about.st_size}")
    return key


def _create(path: Path) -> None:
    """Makes the file under another name first: a crash, or another process, must never meet half a key."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.write(file, os.urandom(MASTER_KEY_BYTES))
            os.fsync(file)
        finally:
            os.close(file)
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            pass  # another process was first; its key is the one
    finally:
        draft.unlink()


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
