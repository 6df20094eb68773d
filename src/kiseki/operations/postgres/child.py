"""`Child`: a program that runs for us and never longer than we do. Used by `programs`.

It is ended when the block that uses it is left in any way, and by the system when this process is killed (Linux), so
that no pg_dump goes on alone.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import pwd
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self, TypeAlias

from kiseki.kernel.errors import KisekiError, Unavailable
from kiseki.operations.errors import NoRoom, OperationFailed, ToolMissing

__all__ = ["Account", "Child", "Input", "explained", "refused_password", "server_account"]

Input: TypeAlias = int | None
"""A file descriptor that a program reads; None for nothing."""

_END_SECONDS: Final = 10.0
_LONGEST: Final = 240
_KEPT: Final = 20_000
"""Bytes of stderr that are kept, the last ones."""
_PR_SET_PDEATHSIG: Final = 1
# Loaded here: between fork and exec nothing may be imported or loaded.
_LIBC: Final = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class Account(NamedTuple):
    """The account of the system that a program runs as."""

    name: str
    user: int
    group: int


def server_account() -> Account | None:
    """Whom a server of ours runs as: None for ourselves; PostgreSQL refuses root. Raises ToolMissing."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise ToolMissing("PostgreSQL does not run as root, and there is no account `postgres` here; make one")


class Child:
    """One run of a program; use it as a block, or `begin` and `stop` it."""

    def __init__(
        self,
        program: Path,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        account: Account | None = None,
        given: Input = None,
        output: int | None = None,
        orphaned: signal.Signals = signal.SIGKILL,
    ) -> None:
        """`output` is a descriptor that it writes to; without one its output is kept. `orphaned`: the signal that it
        gets when this process is gone."""
        self.program = program
        self._arguments = arguments
        self._environment = environment
        self._account = account
        self._given = given
        self._output = output
        self._orphaned = orphaned
        self._process: asyncio.subprocess.Process | None = None
        self._reading: list[asyncio.Task[bytes]] = []

    async def begin(self) -> None:
        """Starts it. Raises ToolMissing."""
        try:
            self._process = await asyncio.create_subprocess_exec(
                self.program,
                *self._arguments,
                stdin=asyncio.subprocess.DEVNULL if self._given is None else self._given,
                stdout=asyncio.subprocess.PIPE if self._output is None else self._output,
                stderr=asyncio.subprocess.PIPE,
                env=self._environment,
                cwd="/",
                start_new_session=True,
                preexec_fn=self._arrange,  # it allocates nothing
            )
        except (FileNotFoundError, PermissionError) as problem:
            raise ToolMissing(f"the program {self.program} can't be run") from problem
        streams = [stream for stream in (self._process.stdout, self._process.stderr) if stream is not None]
        self._reading = [asyncio.create_task(_last(stream)) for stream in streams]

    def _arrange(self) -> None:
        if self._account is not None:
            os.setgroups([])
            os.setgid(self._account.group)
            os.setuid(self._account.user)
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, self._orphaned)

    async def __aenter__(self) -> Self:
        await self.begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop(signal.SIGKILL)

    @property
    def process_id(self) -> int:
        """Of the running program."""
        assert self._process is not None  # noqa: S101  # `begin` comes first
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._process is None or self._process.returncode is not None

    async def finished(self) -> tuple[int, str, str]:
        """Its exit code, output (when it is kept) and what it said on stderr, once it has ended."""
        assert self._process is not None  # noqa: S101  # `begin` comes first
        texts = [(await task).decode(errors="replace") for task in self._reading]
        code = await self._process.wait()
        return code, texts[0] if len(texts) > 1 else "", texts[-1]

    async def stop(self, how: signal.Signals = signal.SIGTERM, *, seconds: float = _END_SECONDS) -> None:
        """Ends it: by a signal, and by force when that takes longer than some seconds. Again is fine."""
        process = self._process
        if process is None:
            return
        try:
            if process.returncode is None:
                _signal(process, how)
                try:
                    async with asyncio.timeout(seconds):
                        await process.wait()
                except TimeoutError:
                    pass
        finally:
            if process.returncode is None:
                _signal(process, signal.SIGKILL)
                await asyncio.shield(process.wait())
            for task in self._reading:
                task.cancel()
            await asyncio.gather(*self._reading, return_exceptions=True)


def _signal(process: asyncio.subprocess.Process, how: signal.Signals) -> None:
    try:
        # Not by the process's own method: that collects its exit code, which then is lost to whoever waits for it.
        os.kill(process.pid, how)
    except ProcessLookupError:
        pass  # it ended meanwhile


async def _last(stream: asyncio.StreamReader) -> bytes:
    kept = b""
    while chunk := await stream.read(1 << 16):
        kept = (kept + chunk)[-_KEPT:]
    return kept


_KINDS: Final[tuple[tuple[re.Pattern[str], type[KisekiError], str], ...]] = (
    (re.compile(r"No space left on device|disk full|File too large|Disk quota"), NoRoom, "make room there"),
    (
        re.compile(r"no pg_hba\.conf entry for replication"),
        Unavailable,
        "add a line `host replication …` for the role of the URL to pg_hba.conf, and reload the server",
    ),
    (
        re.compile(r"password authentication failed|no password supplied|no pg_hba\.conf entry|authentication failed"),
        Unavailable,
        "the server did not accept the user or password; check the URL",
    ),
    (
        re.compile(r"must be superuser or replication role|permission denied to (start WAL sender|use replication)"),
        OperationFailed,
        "as a superuser run ALTER ROLE … REPLICATION for the role of the URL",
    ),
    (re.compile(r"permission denied"), OperationFailed, "grant the role of the URL what it lacks, or use the owner's"),
    (
        re.compile(
            r"server version mismatch|incompatible server version|unsupported version|unrecognized configuration"
        ),
        ToolMissing,
        "use programs of the server's own version, named by `postgres_programs`",
    ),
    (
        re.compile(
            r"could not connect|Connection refused|could not translate host|timeout expired|connection to server"
        ),
        Unavailable,
        "see whether the server runs and can be reached",
    ),
)
_SAID: Final = re.compile(r"^(?:[\w./-]+: )?(?:error|fatal): +(.*)$", re.IGNORECASE)


def refused_password(complaint: str) -> bool:
    """Whether a program could not connect because of its password."""
    return "authentication failed" in complaint


def explained(program: str, complaint: str, code: int, where: str) -> KisekiError:
    """The error of a program that failed, in one line; where a server said more (DETAIL, CONTEXT), that is left out,
    because it may hold what is stored."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    said = [match[1] for line in lines if (match := _SAID.match(line))]
    line = (said or lines or [f"it ended with code {code}"])[0]
    if len(line) > _LONGEST:
        line = f"{line[:_LONGEST]}…"
    place = f" at {where}" if where else ""
    for pattern, kind, remedy in _KINDS:
        if pattern.search(complaint):
            return kind(f"{program} failed{place}: {line}; {remedy}")
    return OperationFailed(f"{program} failed{place}: {line}")
