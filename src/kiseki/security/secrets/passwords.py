"""`SecretPassword`: the password of a database from a secret, for each new connection.

PostgresAddress.parse(url, schema="kiseki_journal", passwords=partial(SecretPassword, secrets))
"""

from __future__ import annotations

from kiseki.security.secrets.reference import SecretReference
from kiseki.security.secrets.source import SecretSource

__all__ = ["SecretPassword"]


class SecretPassword:
    """One secret as a password (clients.postgres.PasswordSource): after a rotation, no restart is needed."""

    def __init__(self, secrets: SecretSource, reference: str) -> None:
        """Raises SecretReferenceInvalid."""
        self._secrets = secrets
        self._reference = reference
        self._label = SecretReference.parse(reference).label

    def __repr__(self) -> str:
        return f"SecretPassword({self._label})"

    async def password(self) -> str:
        """As PasswordSource. Raises SecretRefused, SecretUnavailable."""
        return (await self._secrets.get(self._reference)).reveal()

    async def renewed(self) -> str:
        """As PasswordSource. Raises SecretRefused, SecretUnavailable."""
        return (await self._secrets.renew(self._reference)).reveal()
