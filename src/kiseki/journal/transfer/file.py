"""Files of moved journals on disk: a new one appears whole or not at all, and what is read can be read twice.

Used by `kiseki journal export` and `kiseki journal import`.
"""

from __future__ import annotations

import gzip
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from kiseki.journal.transfer.transferable import TransferFailed, why

__all__ = ["new_file", "rereadable"]


@contextmanager
def new_file(path: Path, *, replace: bool) -> Iterator[BinaryIO]:
    """A file to write, compressed when its name ends in `.gz`, readable by its owner alone.

    It is written under a temporary name beside `path` and gets its own when the context ends well, durably; otherwise
    it is removed. Raises TransferFailed when there is one and it is not to be replaced, and when it can't be written.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        _refuse_existing(target, replace=replace)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as problem:
        raise _unwritable(path, problem) from problem
    try:
        with open(descriptor, "wb") as raw:
            # Neither the time nor the name goes into the compressed file: equal journals give equal files.
            packed = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if target.name.endswith(".gz") else None
            yield raw if packed is None else cast(BinaryIO, packed)
            if packed is not None:
                packed.close()
            raw.flush()
            os.fsync(descriptor)
        _name(part, target, replace=replace)
    except OSError as problem:
        raise _unwritable(path, problem) from problem
    finally:
        # Has got its name when all went well.
        part.unlink(missing_ok=True)


def _refuse_existing(target: Path, *, replace: bool) -> None:
    try:
        status = target.stat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode):
        raise TransferFailed(f"{target} is no regular file; write to standard output instead")
    if not replace:
        raise _exists(target)


def _exists(target: Path) -> TransferFailed:
    return TransferFailed(f"{target} is there already; take another name, or --force to replace it")


def _name(part: Path, target: Path, *, replace: bool) -> None:
    if replace:
        part.replace(target)
    else:
        try:
            # Unlike a rename this never replaces one that came meanwhile.
            target.hardlink_to(part)
        except FileExistsError:
            raise _exists(target) from None
        except OSError:
            # There are file systems without hard links.
            _refuse_existing(target, replace=False)
            part.rename(target)
    directory = os.open(target.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _unwritable(path: Path, problem: OSError) -> TransferFailed:
    return TransferFailed(f"{path} can't be written: {why(problem)}; nothing of it is left")


@contextmanager
def rereadable(path: Path | None, standard_input: BinaryIO) -> Iterator[BinaryIO]:
    """A file to read, or standard input; what can't be read twice is copied to a temporary file first.

    Raises TransferFailed when it can't be opened, or the temporary folder has no room.
    """
    with ExitStack() as opened:
        try:
            source = standard_input if path is None else opened.enter_context(path.open("rb"))
            if not source.seekable():
                copy = opened.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(source, copy, 1 << 20)
                source = cast(BinaryIO, copy)
        except OSError as problem:
            what = "standard input" if path is None else path
            raise TransferFailed(f"{what} can't be read: {why(problem)}") from problem
        yield source
