"""`kiseki database prepare`: databases and roles on a new PostgreSQL server, before `kiseki migrate`."""

from __future__ import annotations

import asyncio
import urllib.parse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from kiseki.cli.journal import settings_of
from kiseki.clients.postgres import PostgresAddress
from kiseki.clients.urls import StoreUrlInvalid
from kiseki.operations.errors import OperationFailed
from kiseki.operations.postgres.roles import prepare_server, wanted_databases
from kiseki.security.secrets.passwords import SecretPassword
from kiseki.service.secrets import opened_secrets
from kiseki.service.settings import Settings

__all__ = ["prepare"]

_SETTINGS = ("journal", "keys", "read_model", "audit_database", "audit_anchors", "erasure_ledger", "lease")
"""Those that may name a database of PostgreSQL."""


def prepare(*, admin: str, config: Path | None, data_dir: Path | None) -> None:
    """Prints a line for each thing that was made. Raises SettingsError, StoreUrlInvalid, OperationFailed, and what a
    source of secrets raises."""
    for line in asyncio.run(_prepare(settings_of(config, data_dir), admin)) or ("everything is there",):
        print(line)


async def _prepare(settings: Settings, admin: str) -> Sequence[str]:
    host = urllib.parse.urlsplit(admin).hostname
    if not host:
        raise StoreUrlInvalid("--admin names no host; write postgresql://user:password@host:5432/postgres")
    async with opened_secrets(settings) as secrets:
        passwords = partial(SecretPassword, secrets)
        wanted = wanted_databases({name: getattr(settings, name) for name in _SETTINGS}, passwords)
        if not wanted:
            raise OperationFailed(f"no setting names a database of PostgreSQL; these may: {', '.join(_SETTINGS)}")
        address = PostgresAddress.parse(admin, schema="public", passwords=passwords)
        return await prepare_server(address, host, wanted)
