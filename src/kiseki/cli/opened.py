"""What the commands of the security room work on, opened from the settings: secrets, the audit log, keys, tokens."""

from __future__ import annotations

import getpass
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kiseki.application.system import SystemClock
from kiseki.cli.keys import OpenKeys
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.security.audit.log import AuditLog
from kiseki.security.audit.places import AuditPlaces
from kiseki.security.identity.issuing import TokenIssuer
from kiseki.security.masking import Masker
from kiseki.security.secrets.source import SecretSource
from kiseki.service.audit import audit_keys, audit_places, open_audit
from kiseki.service.identity import OpenIdentity, issuer_of, open_identity
from kiseki.service.secrets import opened_secrets
from kiseki.service.settings import Settings
from kiseki.service.stores import Stores

__all__ = ["opened_audit", "opened_audit_log", "opened_identity", "opened_issuer", "opened_keys", "operator"]


def operator() -> str:
    """Who works at this machine, for the audit log."""
    try:
        return f"operator:{getpass.getuser()}"
    except (KeyError, OSError):
        return "operator"


@asynccontextmanager
async def opened_audit_log(settings: Settings) -> AsyncIterator[AuditPlaces]:
    """The log, to read. Raises AuditLogNotKept, AuditKeyRefused, SettingsError."""
    async with opened_secrets(settings) as secrets:
        keys = await audit_keys(settings, secrets)
        async with audit_places(settings, keys, secrets) as places:
            yield places


@asynccontextmanager
async def opened_keys(settings: Settings) -> AsyncIterator[OpenKeys]:
    """The key store and its master keys. Raises as Stores.open."""
    async with opened_audit(settings) as (_, audit):
        stores = await Stores.open(settings, clock=SystemClock(), telemetry=NoTelemetry(), make=False)
        try:
            yield OpenKeys(stores.key_store, stores.master_keys, audit, operator())
        finally:
            await stores.close()


@asynccontextmanager
async def opened_issuer(settings: Settings, key: Path | None) -> AsyncIterator[TokenIssuer]:
    """What issues tokens. Raises SettingsError, KeyRefused."""
    async with opened_audit(settings) as (secrets, audit):
        yield await issuer_of(settings, secrets=secrets, clock=SystemClock(), auditor=audit, private_key=key)


@asynccontextmanager
async def opened_identity(settings: Settings) -> AsyncIterator[OpenIdentity]:
    """What knows tokens and revocations. Raises SettingsError, KeyRefused, Unavailable."""
    async with opened_audit(settings) as (secrets, audit):
        opened = await open_identity(
            settings, secrets=secrets, clock=SystemClock(), auditor=audit, pseudonym=lambda issuer, subject: ""
        )
        try:
            yield opened
        finally:
            await opened.close()


@asynccontextmanager
async def opened_audit(settings: Settings) -> AsyncIterator[tuple[SecretSource, AuditLog]]:
    """What records what an operator does, with the secrets that it needs. Raises SettingsError, AuditUnavailable."""
    async with opened_secrets(settings) as secrets:
        audit = await open_audit(settings, secrets=secrets, clock=SystemClock(), masker=Masker())
        try:
            yield secrets, audit
        finally:
            await audit.close()
