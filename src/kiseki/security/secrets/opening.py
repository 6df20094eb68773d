"""`open_secrets`: the source of secrets of one process, from plain settings. Used by the composition root."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kiseki.kernel.ports import Clock
from kiseki.security.secrets.reading import SecretReader, SecretRefused, read_secret_file
from kiseki.security.secrets.reference import SecretReference
from kiseki.security.secrets.source import SecretSource

if TYPE_CHECKING:
    from kiseki.clients.vault import VaultClient

__all__ = ["open_secrets", "vault_client"]


def open_secrets(
    *,
    clock: Clock,
    refresh: float = 300.0,
    aws_region: str = "",
    vault: Callable[[], VaultClient] | None = None,
    on_secret: Callable[[str], None] | None = None,
) -> SecretSource:
    """Never fails and asks nobody: libraries and clients of a kind are loaded by its first reading. `aws_region` for
    references without one. `vault` makes the client; None where there is no Vault."""
    readers: dict[str, SecretReader] = {"aws-sm": _Later(lambda: _aws(aws_region))}
    if vault is not None:
        make = vault
        readers["vault"] = _Later(lambda: _vault(make))
    return SecretSource(clock=clock, readers=readers, refresh=refresh, on_secret=on_secret)


def vault_client(
    address: str, *, token_file: Path | None, role_id: str, secret_id: str, ca: Path | None
) -> Callable[[], VaultClient] | None:
    """What makes clients of Vault from settings; None without an address. `secret_id` is a plain value or file:///path,
    which is read at each login. Raises SecretRefused, SecretReferenceInvalid; the client StoreUrlInvalid."""
    if not address:
        return None
    reference = SecretReference.parse(secret_id)
    if reference.kind not in ("plain", "file"):
        raise SecretRefused("vault_secret_id is a file:///path: it can't be in Vault, or depend on AWS")

    async def secret() -> str:
        return read_secret_file(Path(reference.name)) if reference.kind == "file" else reference.name

    def make() -> VaultClient:
        from kiseki.clients.vault import VaultClient  # noqa: PLC0415  # it needs a library of its own

        return VaultClient(
            address, token_file=token_file, role_id=role_id, secret_id=secret if secret_id else None, ca=ca
        )

    return make


class _Later:
    """A reader that is made by its first reading."""

    def __init__(self, make: Callable[[], SecretReader]) -> None:
        self._make = make
        self._made: SecretReader | None = None

    async def read(self, reference: SecretReference) -> str:
        if self._made is None:
            self._made = self._make()
        return await self._made.read(reference)

    async def close(self) -> None:
        if self._made is not None:
            await self._made.close()


def _aws(region: str) -> SecretReader:
    try:
        from kiseki.security.secrets.aws import AwsSecrets  # noqa: PLC0415  # it needs the extra `aws`
    except ModuleNotFoundError as problem:
        if (problem.name or "").startswith("kiseki"):
            raise
        raise SecretRefused(f"aws-sm:// needs {problem.name}; pip install 'kiseki[aws]'") from problem
    return AwsSecrets(region=region)


def _vault(make: Callable[[], VaultClient]) -> SecretReader:
    try:
        from kiseki.security.secrets.vault import VaultSecrets  # noqa: PLC0415  # it needs a library of its own

        return VaultSecrets(make())
    except ModuleNotFoundError as problem:
        if (problem.name or "").startswith("kiseki"):
            raise
        raise SecretRefused(f"vault:// needs {problem.name}; pip install 'kiseki[vault]'") from problem
