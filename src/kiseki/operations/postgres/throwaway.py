"""`throwaway_server`: a PostgreSQL of our own on a private socket, for as long as a block. Used to verify backups.

Nothing of it is reachable by the network, and it ends with this process. What a run that was killed left is removed by
the next.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from kiseki.clients.postgres import PostgresAddress
from kiseki.operations.errors import OperationFailed
from kiseki.operations.postgres.child import Account, Child, explained, server_account
from kiseki.operations.postgres.programs import PostgresPrograms

__all__ = ["new_cluster", "private_folder", "running_server", "socket_address", "throwaway_server"]

_PREFIX: Final = "kiseki-throwaway-"
_LOCK: Final = "lock"
_START_SECONDS: Final = 3_600.0
"""It may have a day of write-ahead log to replay first; a server that fails ends by itself."""
_STOP_SECONDS: Final = 120.0
_LOOK_SECONDS: Final = 0.05
_USER: Final = "kiseki"
_SETTINGS: Final = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "port": "5432",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_line_prefix": "",
    "ssl": "off",
    "archive_mode": "off",
    "shared_preload_libraries": "",
    "session_preload_libraries": "",
    "synchronous_standby_names": "",
    "shared_buffers": "128MB",
    "huge_pages": "off",
    "max_wal_size": "4GB",
    "maintenance_work_mem": "256MB",
    "autovacuum": "off",
    "jit": "off",
}
_FAST: Final = {"wal_level": "minimal", "max_wal_senders": "0"}
"""What is loaded into new tables then needs no write-ahead log."""


@contextmanager
def private_folder(base: Path | None, account: Account | None) -> Iterator[Path]:
    """An empty folder for the time of the block, that the account may use; leftovers of killed runs are removed."""
    parent = base or Path(tempfile.gettempdir())
    _remove_leftovers(parent)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if account is not None:
            os.chown(folder, account.user, account.group)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_leftovers(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR)
        except OSError:
            continue  # it is being made, or is not ours
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # somebody uses it
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


@asynccontextmanager
async def throwaway_server(
    programs: PostgresPrograms, *, base: Path | None, major: int
) -> AsyncIterator[PostgresAddress]:
    """A new, empty server of at least a major version; the address of its database `postgres`.

    Raises ToolMissing, NoRoom, OperationFailed.
    """
    account = server_account()
    with private_folder(base, account) as folder:
        data = folder / "data"
        await new_cluster(programs, data, account=account, major=major)
        postgres = await programs.find("postgres", at_least=major, account=account)
        async with running_server(programs, postgres, data, account=account, settings=_FAST) as socket:
            yield socket_address(socket, "postgres", _USER)


async def new_cluster(programs: PostgresPrograms, data: Path, *, account: Account | None, major: int) -> None:
    """Makes an empty cluster in a folder that is not there yet. Raises ToolMissing, NoRoom, OperationFailed."""
    initdb = await programs.find("initdb", at_least=major, account=account)
    arguments = ["-D", str(data), "-U", _USER, "--encoding=UTF8", "--locale=C", "--auth=trust", "--no-sync"]
    await programs.run(initdb, [*arguments, "--no-instructions"], account=account)


def socket_address(socket: Path, database: str, user: str) -> PostgresAddress:
    """How to connect to a server of ours."""
    url = f"postgresql://{user}@/{database}?host={socket}&port=5432"
    return PostgresAddress(dsn=url, schema="public", label=f"a throw-away server in {socket}")


@asynccontextmanager
async def running_server(
    programs: PostgresPrograms,
    postgres: Path,
    data: Path,
    *,
    account: Account | None,
    settings: Mapping[str, str],
) -> AsyncIterator[Path]:
    """Runs a server on a data folder until the end of the block, then stops it cleanly; the folder of its socket.

    Whatever is configured in the data folder, nobody but this account and root gets in. Raises NoRoom, OperationFailed.
    """
    # Short on purpose: the path of a socket may have 107 bytes.
    socket = Path(tempfile.mkdtemp(prefix="kiseki-pg-"))
    hba = socket / "hba.conf"
    hba.write_text("local all all trust\n")
    empty = socket / "postgresql.conf"
    empty.write_text("")
    if account is not None:
        for path in (socket, hba, empty):
            os.chown(path, account.user, account.group)
    given = {
        **_SETTINGS,
        "unix_socket_directories": str(socket),
        "config_file": str(empty),
        "hba_file": str(hba),
        "ident_file": str(empty),
        "cluster_name": f"kiseki-{secrets.token_hex(4)}",
        **settings,
    }
    arguments = ["-D", str(data), *(part for name, value in given.items() for part in ("-c", f"{name}={value}"))]
    try:
        server = await programs.start(postgres, arguments, account=account, orphaned=signal.SIGQUIT)
        try:
            await _ready(server, data)
            yield socket
        finally:
            await server.stop(signal.SIGINT, seconds=_STOP_SECONDS)
    finally:
        shutil.rmtree(socket, ignore_errors=True)


async def _ready(server: Child, data: Path) -> None:
    """Until it takes connections, and is no standby any more."""
    try:
        async with asyncio.timeout(_START_SECONDS):
            while not server.ended:
                if await asyncio.to_thread(_state, data) == (str(server.process_id), "ready"):
                    return
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError:
        raise OperationFailed(f"the server in {data} did not start in {_START_SECONDS:.0f} seconds") from None
    code, _, complaint = await server.finished()
    raise explained("postgres", complaint, code, "")


def _state(data: Path) -> tuple[str, str]:
    try:
        lines = (data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "", ""
    return (lines[0].strip(), lines[7].strip()) if len(lines) >= 8 else ("", "")
