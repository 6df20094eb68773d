"""`PostgresPrograms`: PostgreSQL's own programs (pg_dump and so on), found in the right version and run.

Used by the PostgreSQL drivers. A password reaches a program by its environment only; what a program says on stderr
becomes one line.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from kiseki.clients.postgres import PostgresAddress
from kiseki.operations.errors import ToolMissing
from kiseki.operations.postgres.child import Account, Child, Input, explained, refused_password
from kiseki.operations.postgres.environment import environment_of

__all__ = ["PostgresPrograms"]

_DEBIAN: Final = Path("/usr/lib/postgresql")
_VERSION: Final = re.compile(r"\(PostgreSQL\) (\d+)")
_SERVER: Final = frozenset({"initdb", "postgres"})


class PostgresPrograms:
    """Finds each program in the folder that was named, else on PATH, else where Debian keeps them, newest first."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` is the setting `postgres_programs`."""
        self._folder = None if folder is None else folder.absolute()
        self._majors: dict[tuple[Path, Account | None], int | None] = {}

    async def find(
        self, name: str, *, at_least: int = 0, exactly: int | None = None, account: Account | None = None
    ) -> Path:
        """The oldest of a fitting major version, the first of those, that the account may run. Raises ToolMissing.

        The oldest, because what newer programs write older servers do not always understand.
        """
        found: list[int] = []
        fitting: dict[int, Path] = {}
        for folder in self._folders():
            path = folder / name
            major = await self._major(path, account)
            if major is None:
                continue
            if major >= at_least and exactly in (None, major):
                fitting.setdefault(major, path)
            found.append(major)
        if fitting:
            return fitting[min(fitting)]
        raise ToolMissing(
            self._missing(name, found, at_least if exactly is None else exactly, exact=exactly is not None)
        )

    async def has(self, *names: str, at_least: int = 0, exactly: int | None = None, account: Account | None) -> bool:
        """Whether all of them are here."""
        try:
            for name in names:
                await self.find(name, at_least=at_least, exactly=exactly, account=account)
        except ToolMissing:
            return False
        return True

    async def major(self, path: Path) -> int:
        """The major version of a program that `find` gave."""
        return await self._major(path, None) or 0

    async def run(
        self,
        program: Path,
        arguments: Sequence[str],
        *,
        address: PostgresAddress | None = None,
        account: Account | None = None,
        given: Input = None,
    ) -> str:
        """What a program prints, once it has ended well; killed when the caller is cancelled or this process dies.

        With an address it connects there: a password that was refused is asked for once more where it comes from.
        Raises NoRoom, OperationFailed, Unavailable, ToolMissing.
        """
        renewed = False
        while True:
            async with Child(
                program,
                arguments,
                environment=await environment_of(address, renewed=renewed),
                account=account,
                given=given,
            ) as child:
                code, output, complaint = await child.finished()
            if code == 0:
                return output
            if address is None or address.passwords is None or renewed or not refused_password(complaint):
                raise explained(program.name, complaint, code, "" if address is None else address.label)
            renewed = True

    async def pipe(
        self,
        first: tuple[Path, Sequence[str], PostgresAddress],
        second: tuple[Path, Sequence[str], PostgresAddress],
    ) -> None:
        """Runs two programs, the output of the first being the input of the second. Raises as `run`."""
        reading, writing = os.pipe()
        async with AsyncExitStack() as stack:
            try:
                source = await stack.enter_async_context(
                    Child(first[0], first[1], environment=await environment_of(first[2]), output=writing)
                )
                target = await stack.enter_async_context(
                    Child(second[0], second[1], environment=await environment_of(second[2]), given=reading)
                )
            finally:
                os.close(reading)
                os.close(writing)
            ended = await asyncio.gather(source.finished(), target.finished())
        # The second first: when it ends early, the first one only says that nobody listens.
        for (program, _, address), (code, _, complaint) in zip((second, first), reversed(ended), strict=True):
            if code:
                raise explained(program.name, complaint, code, address.label)

    async def start(
        self,
        program: Path,
        arguments: Sequence[str],
        *,
        address: PostgresAddress | None = None,
        account: Account | None = None,
        renewed: bool = False,
        orphaned: signal.Signals = signal.SIGKILL,
    ) -> Child:
        """A program that goes on running; the caller ends it by `stop`, and it dies with this process."""
        environment = await environment_of(address, renewed=renewed)
        child = Child(program, arguments, environment=environment, account=account, orphaned=orphaned)
        await child.begin()
        return child

    def _folders(self) -> list[Path]:
        if self._folder is not None:
            return [self._folder]
        folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
        if _DEBIAN.is_dir():
            versions = [path for path in _DEBIAN.iterdir() if path.name.isdigit()]
            folders += [path / "bin" for path in sorted(versions, key=lambda path: -int(path.name))]
        return folders

    async def _major(self, path: Path, account: Account | None) -> int | None:
        known = (path, account)
        if known not in self._majors:
            self._majors[known] = await self._asked(path, account) if os.access(path, os.X_OK) else None
        return self._majors[known]

    async def _asked(self, path: Path, account: Account | None) -> int | None:
        try:
            async with Child(path, ["--version"], environment=await environment_of(None), account=account) as child:
                code, output, _ = await child.finished()
        except OSError:
            return None
        version = _VERSION.search(output)
        return int(version[1]) if code == 0 and version else None

    def _missing(self, name: str, found: Sequence[int], wanted: int, *, exact: bool) -> str:
        package = f"postgresql{'' if name in _SERVER else '-client'}{f'-{wanted}' if wanted else ''}"
        where = f"in {self._folder}" if self._folder is not None else "on PATH"
        remedy = f"install {package} here, or name the folder of its programs by `postgres_programs`"
        if not found:
            return f"the program {name} is not {where}; {remedy}"
        rule = "has to be of the same version" if exact else "is too old"
        return f"{name} {found[0]} {where} {rule} for PostgreSQL {wanted}; {remedy}"
