"""Secrets in Vault or OpenBao, KV version 2. Used by `SecretSource` for vault:// references."""

from __future__ import annotations

from kiseki.clients.vault import VaultClient, VaultRefused, VaultUnavailable
from kiseki.security.secrets.reading import SecretRefused, SecretUnavailable
from kiseki.security.secrets.reference import SecretReference

__all__ = ["VaultSecrets"]


class VaultSecrets:
    """Reads the newest versions of fields (a SecretReader). Closes its client."""

    def __init__(self, client: VaultClient) -> None:
        self._client = client

    async def read(self, reference: SecretReference) -> str:
        """As SecretReader."""
        mount, _, path = reference.name.partition("/")
        try:
            answer = await self._client.read(f"{mount}/data/{path}")
        except VaultUnavailable as problem:
            raise SecretUnavailable(f"{reference.label} can't be read now: {problem}") from problem
        except VaultRefused as problem:
            raise SecretRefused(f"{reference.label} can't be read: {problem}") from problem
        outer = answer.get("data")
        data = outer.get("data") if isinstance(outer, dict) else None
        value = data.get(reference.field) if isinstance(data, dict) else None
        if not isinstance(value, str) or not value:
            raise SecretRefused(f"{reference.label}: there is no text in this field (is the mount KV version 2?)")
        return value

    async def close(self) -> None:
        """As SecretReader."""
        await self._client.close()
