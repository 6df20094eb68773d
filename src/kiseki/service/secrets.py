"""Secrets as the settings refer to them: in files, AWS Secrets Manager or Vault. Used by the composition root.

The libraries of AWS and Vault are loaded when a secret is there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from kiseki.application.system import SystemClock
from kiseki.kernel.ports import Clock
from kiseki.security.masking import Masker
from kiseki.security.secrets.opening import open_secrets, vault_client
from kiseki.security.secrets.source import SecretSource
from kiseki.service.settings import Settings

if TYPE_CHECKING:
    from kiseki.clients.vault import VaultClient

__all__ = ["opened_secrets", "secrets_of", "vault_of"]


def secrets_of(settings: Settings, *, clock: Clock, masker: Masker) -> SecretSource:
    """The source of this process; everything that becomes known is masked in what it prints. Asks nobody yet."""
    return open_secrets(clock=clock, refresh=settings.secret_refresh, vault=vault_of(settings), on_secret=masker.add)


@asynccontextmanager
async def opened_secrets(settings: Settings) -> AsyncIterator[SecretSource]:
    """The source for one piece of work with a masker of its own, closed after it. Raises as `vault_of`."""
    secrets = secrets_of(settings, clock=SystemClock(), masker=Masker())
    try:
        yield secrets
    finally:
        await secrets.close()


def vault_of(settings: Settings) -> Callable[[], VaultClient] | None:
    """What makes clients of Vault; None without an address. Raises SecretRefused, SecretReferenceInvalid."""
    return vault_client(
        settings.vault_address,
        token_file=settings.vault_token_file,
        role_id=settings.vault_role_id,
        secret_id=settings.vault_secret_id,
        ca=settings.vault_ca,
    )
