"""Hints between processes on one machine that a journal grew: datagrams to Unix sockets in a directory.

Used by the SQLite journal. A hint may be lost; whoever waits for one also looks now and then.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kiseki.journal.watchers import Watchers

__all__ = ["WakeupListener", "WakeupSender"]

_log = logging.getLogger(__name__)

_SUFFIX: Final = ".sock"
_LONGEST_DIRECTORY: Final = 70
"""Bytes. A socket's address holds 108 (sun_path, unix(7)); the rest is for its name."""
_LISTENERS_AT_MOST: Final = 1_000


@contextmanager
def _reachable(directory: Path) -> Iterator[str]:
    """A name for the directory that is short enough for a socket's address, also when its path is not."""
    if len(os.fsencode(directory)) <= _LONGEST_DIRECTORY:
        yield os.fspath(directory)
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


class WakeupListener:
    """Calls functions on the event loop when a hint came. All of it runs on the loop."""

    def __init__(self, directory: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._directory = directory
        self._loop = loop
        self._watchers = Watchers("the journal to grow")
        self._socket: socket.socket | None = None
        self.name: str | None = None
        """The name of this listener's socket, while there is one."""

    def add(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Calls `wake` at every hint until the returned function is called."""
        end = self._watchers.add(wake, nobody_left=self.close)
        if self._socket is None:
            self._listen()
        return end

    def wake(self) -> None:
        """Passes a hint on. A function that fails is logged and does not keep the others from it."""
        self._watchers.wake()

    def close(self) -> None:
        """Stops listening; again is fine."""
        if self._socket is None or self.name is None:
            return
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        (self._directory / self.name).unlink(missing_ok=True)
        self._socket = self.name = None

    def _listen(self) -> None:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            listening.setblocking(False)
            _make_private(self._directory)
            self.name = _bind(listening, self._directory)
        except OSError as problem:
            listening.close()
            _log.warning("no hints from other processes (%s); followers of the journal look now and then", problem)
            return
        self._socket = listening
        self._loop.add_reader(listening.fileno(), self._drain, listening)

    def _drain(self, listening: socket.socket) -> None:
        try:
            while listening.recv(16):
                pass
        except OSError as problem:
            if problem.errno not in (errno.EAGAIN, errno.EWOULDBLOCK):
                _log.warning("reading a hint failed: %s", problem)
        self.wake()


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise PermissionError(errno.EPERM, f"{directory} is not a private directory of this user")


def _bind(listening: socket.socket, directory: Path) -> str:
    with _reachable(directory) as reachable:
        for number in range(_LISTENERS_AT_MOST):
            name = f"{os.getpid()}-{number}{_SUFFIX}"
            try:
                listening.bind(f"{reachable}/{name}")
            except OSError as problem:
                # Another journal of this process, or the leftover of a process that had the same number.
                if problem.errno != errno.EADDRINUSE:
                    raise
            else:
                return name
    raise OSError(errno.EADDRINUSE, f"{directory} is full of sockets")


def _remove_socket(path: Path) -> None:
    try:
        if stat.S_ISSOCK(path.lstat().st_mode):  # to a plain file, too, a connection is refused
            path.unlink()
    except OSError as problem:
        _log.debug("a socket that nobody listens on was not removed: %s", problem)


class WakeupSender:
    """Sends hints to all other listeners; belongs to one thread."""

    def __init__(self, directory: Path, own: WakeupListener) -> None:
        self._directory = directory
        self._own = own
        self._socket: socket.socket | None = None

    def send(self) -> None:
        """One datagram to each listener but the own one, never waiting; sockets nobody listens on are removed."""
        try:
            names = os.listdir(self._directory)
        except OSError:
            return  # nobody has listened yet
        own = self._own.name
        names = [name for name in names if name != own and name.endswith(_SUFFIX)]
        if not names:
            return
        try:
            with _reachable(self._directory) as reachable:
                for name in names:
                    self._send(f"{reachable}/{name}")
        except OSError as problem:
            _log.debug("hints could not be sent: %s", problem)

    def _send(self, address: str) -> None:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
        try:
            self._socket.sendto(b"\0", address)
        except ConnectionRefusedError:
            _remove_socket(Path(address))
        except OSError as problem:
            # Mostly a listener that has not read its earlier hints and needs no further one, or that has just gone.
            _log.debug("a hint was not sent: %s", problem)

    def close(self) -> None:
        """Lets go of the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
