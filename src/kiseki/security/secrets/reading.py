"""The port `SecretReader`, its errors, and the reader of files. Each other kind has a module of its own."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path
from typing import Final, Protocol

from kiseki.kernel.errors import KisekiError, Unavailable
from kiseki.security.secrets.reference import SecretReference

__all__ = ["SECRET_BYTES", "FileSecrets", "SecretReader", "SecretRefused", "SecretUnavailable", "read_secret_file"]

SECRET_BYTES: Final = 65_536


class SecretUnavailable(Unavailable):
    """Where a secret is can't be asked now."""

    code = "SECRET_UNAVAILABLE"


class SecretRefused(KisekiError):
    """A secret is not there, may not be read, or can't be used as it is."""

    code = "SECRET_REFUSED"


class SecretReader(Protocol):
    """Reads secrets of one kind, in bounded time."""

    async def read(self, reference: SecretReference) -> str:
        """The secret of now. Raises SecretUnavailable, SecretRefused."""
        ...

    async def close(self) -> None:
        """Lets go of connections; again is fine."""
        ...


class FileSecrets:
    """Reads files that the platform mounts or a person wrote (a SecretReader)."""

    async def read(self, reference: SecretReference) -> str:
        """As SecretReader."""
        return await asyncio.to_thread(read_secret_file, Path(reference.name))

    async def close(self) -> None:
        """As SecretReader: nothing to do."""


def read_secret_file(path: Path) -> str:
    """The text of a file that nobody else may read, and no group may write, without one newline at its end.

    Raises SecretRefused.
    """
    try:
        # Never waits for the other end of a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise SecretRefused(f"the secret {path} is not a file")
            if about.st_mode & 0o027:
                raise SecretRefused(f"others may use the secret {path}: chmod 600 it, or 640 for a group that reads")
            content = file.read(SECRET_BYTES + 1)
    except OSError as problem:
        raise SecretRefused(f"the secret {path} can't be read: {problem.strerror}") from problem
    if len(content) > SECRET_BYTES:
        raise SecretRefused(f"the secret {path} has more than {SECRET_BYTES:,} bytes")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise SecretRefused(f"the secret {path} is no UTF-8") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text or "\0" in text:
        raise SecretRefused(f"the secret {path} is empty, or has a zero byte")
    return text
