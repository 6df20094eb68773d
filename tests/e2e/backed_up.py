"""A service whose backups are elsewhere, as the tests of backup and restore share it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.e2e.client import Client
from tests.e2e.commands import kiseki_in
from tests.e2e.processes import Service

CREATE = "mutation ($i: CreateUserAccountInput!) { createUserAccount(input: $i) { id } }"
RENAME = "mutation ($i: RenameUserAccountInput!) { renameUserAccount(input: $i) { id } }"
ERASE = "mutation ($i: EraseUserAccountInput!) { eraseUserAccount(input: $i) { id } }"
ALL = "{ getUserAccounts(first: 1000) { id fullName } }"
TOKEN = "kiseki-consistency-token"


class BackedUp:
    """`kiseki serve` with places for backups; everything it needs to come back is outside of its data directory."""

    def __init__(self, folder: Path, *, environment: Mapping[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir(exist_ok=True)
        for place in ("backups", "key-backups"):
            (self.elsewhere / place).mkdir(exist_ok=True)
        (self.elsewhere / "master.key").write_bytes(bytes(range(32)))
        (self.elsewhere / "master.key").chmod(0o600)
        (self.elsewhere / "audit.key").write_text("Xr5mT2vQz8Lk3Bn7Wd1Yp9Hs4Jf6Gc0aEuR-iOtKqZ")
        (self.elsewhere / "audit.key").chmod(0o600)
        self.environment = {
            "KISEKI_MASTER_KEY": str(self.elsewhere / "master.key"),
            "KISEKI_AUDIT_KEY": f"file://{self.elsewhere / 'audit.key'}",
            "KISEKI_ERASURE_LEDGER": str(self.elsewhere / "erasures"),
            "KISEKI_BACKUP": str(self.elsewhere / "backups"),
            "KISEKI_BACKUP_KEYS": str(self.elsewhere / "key-backups"),
            **(environment or {}),
        }
        self.token = ""
        self.service = self._service(folder / "data")

    def _service(self, data_dir: Path) -> Service:
        return Service(data_dir, "--drain-delay", "0", environment=self.environment)

    @property
    def data_dir(self) -> Path:
        return self.service.data_dir

    def lose_data(self) -> None:
        """The disk of the data directory is gone."""
        self.service.kill()
        shutil.rmtree(self.data_dir)

    async def start(self) -> None:
        self.service.start()
        await self.service.ready()

    def stop(self) -> None:
        assert self.service.terminate() == 0

    async def send(self, document: str, given: Mapping[str, Any]) -> str:
        """An acknowledged command; the id in the answer."""
        async with Client(self.service.command_port) as client:
            reply = await client.graphql(document, {"i": dict(given)})
        assert reply.status == 200, reply.body
        answer = reply.json()
        assert "errors" not in answer, answer
        self.token = reply.headers[TOKEN]
        return str(next(iter(answer["data"].values()))["id"])

    async def create(self, first: str = "Hanako", last: str = "Yamada") -> str:
        return await self.send(CREATE, {"firstName": first, "lastName": last, "emailAddress": "hanako@example.com"})

    async def rename(self, account: str, last: str) -> None:
        await self.send(RENAME, {"userAccountId": account, "firstName": "Hanako", "lastName": last})

    async def erase(self, account: str) -> None:
        await self.send(ERASE, {"userAccountId": account})

    async def names(self) -> dict[str, str]:
        """Who the read model knows, once it has seen the last write."""
        async with Client(self.service.query_port) as client:
            reply = await client.graphql(ALL, None, **({TOKEN: self.token} if self.token else {}))
        assert reply.status == 200, reply.body
        return {one["id"]: one["fullName"] for one in reply.json()["data"]["getUserAccounts"]}

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command on this service's settings."""
        given = {**self.environment, **environment, "KISEKI_DATA_DIR": str(self.data_dir)}
        return kiseki_in(given, *arguments)

    def kiseki(self, *arguments: str) -> str:
        """What a command that succeeds prints."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def backups(self, part: str = "journal") -> list[dict[str, Any]]:
        """What `kiseki backup list` says of a part."""
        return [one for one in json.loads(self.kiseki("backup", "list", "--json")) if one["part"] == part]


def backed_up(folder: Path, **environment: str) -> Iterator[BackedUp]:
    """One, whose processes are gone at the end."""
    made = BackedUp(folder, environment=environment)
    yield made
    if made.service.process is not None:
        made.service.kill()
