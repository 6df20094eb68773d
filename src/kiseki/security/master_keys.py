"""`open_master_keys`: the master key that a setting names, and older ones to read with: a file, AWS KMS, Vault.

Used by the composition root and by `kiseki keys`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import parse_qsl, unquote

from kiseki.security.master_key import (
    LocalMasterKey,
    MasterKey,
    MasterKeyMissing,
    MasterKeyRefused,
    wrapped_by,
)

if TYPE_CHECKING:
    from kiseki.clients.vault import VaultClient

__all__ = ["MasterKeys", "is_local", "open_master_keys"]

_KMS: Final = "aws-kms://"
_VAULT: Final = "vault-transit://"
_FORMS: Final = "a path, aws-kms://<key or alias/name>?region=<region> or vault-transit://<mount>/<key>"


class MasterKeys:
    """One master key that wraps, and any number of any kind that are only read with (a KeyWrapper)."""

    def __init__(self, current: MasterKey, *, previous: Sequence[MasterKey] = ()) -> None:
        """Closes all of them."""
        self._current = current
        self._all = (current, *previous)

    @property
    def key_id(self) -> str:
        """As KeyWrapper."""
        return self._current.key_id

    def reads(self, key_id: str) -> bool:
        """As MasterKey: whether one of them does."""
        return any(each.reads(key_id) for each in self._all)

    async def wrap(self, plain: bytes, context: bytes) -> bytes:
        """As KeyWrapper, with the current one."""
        return await self._current.wrap(plain, context)

    async def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """As KeyWrapper, with the one that wrapped."""
        key_id = wrapped_by(wrapped)
        for master_key in self._all:
            if master_key.reads(key_id):
                return await master_key.unwrap(wrapped, context)
        have = ", ".join(each.key_id for each in self._all)
        raise MasterKeyMissing(
            f"a key was wrapped by the master key {key_id}; this process has {have}; give the other in "
            "`master_keys_previous` until `kiseki keys rotate` needs it no more"
        )

    async def close(self) -> None:
        """Lets go of all connections; again is fine."""
        for master_key in self._all:
            await master_key.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def is_local(setting: str) -> bool:
    """Whether a setting of a master key names a file."""
    return not setting.startswith((_KMS, _VAULT))


async def open_master_keys(
    setting: str,
    *,
    previous: Sequence[str] = (),
    default: Path,
    vault: Callable[[], VaultClient] | None = None,
    make: bool = True,
) -> MasterKeys:
    """The master key of a setting, or of the file `default` when it is empty; each of `previous` is read with too.

    With `make` a file that is not there is made, if it is the current one. `vault` makes a client for each key in
    Vault. Raises MasterKeyRefused, MasterKeyMissing, MasterKeyUnavailable.
    """
    opened: list[MasterKey] = []
    try:
        opened.append(await _open(setting, default=default, vault=vault, make=make))
        for each in previous:
            opened.append(await _open(each, default=default, vault=vault, make=False))
    except BaseException:
        for each_opened in opened:
            await each_opened.close()
        raise
    return MasterKeys(opened[0], previous=opened[1:])


async def _open(setting: str, *, default: Path, vault: Callable[[], VaultClient] | None, make: bool) -> MasterKey:
    if setting.startswith(_KMS):
        return await _open_kms(setting.removeprefix(_KMS))
    if setting.startswith(_VAULT):
        if vault is None:
            raise MasterKeyRefused("a master key in Vault needs vault_address, and a way to log in")
        return await _open_vault(setting.removeprefix(_VAULT), vault)
    path = _path(setting) if setting else default
    return await asyncio.to_thread(LocalMasterKey.load_or_create if make else LocalMasterKey.load, path)


async def _open_kms(rest: str) -> MasterKey:
    # Only where it is used: it needs the extra `aws`.
    from kiseki.clients.aws_json import REGION, endpoint_of  # noqa: PLC0415
    from kiseki.clients.kms import KmsClient  # noqa: PLC0415
    from kiseki.clients.urls import StoreUrlInvalid  # noqa: PLC0415
    from kiseki.security.kms_master_key import KmsMasterKey  # noqa: PLC0415

    key, _, query = rest.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    parameters = dict(pairs)
    if len(parameters) < len(pairs) or not parameters.keys() <= {"region", "endpoint"} or "#" in rest:
        raise MasterKeyRefused("a master key in KMS has the parameters region and endpoint, each once")
    key = unquote(key)
    # An ARN names its region itself.
    region = parameters.get("region") or (key.split(":")[3] if key.startswith("arn:") and key.count(":") >= 5 else "")
    if not key or not key.isascii() or not key.isprintable() or " " in key or len(key) > 2048:
        raise MasterKeyRefused(f"the setting of a master key is {_FORMS}")
    if not REGION.fullmatch(region):
        raise MasterKeyRefused("a master key in KMS needs a region, such as region=eu-west-1")
    try:
        endpoint = endpoint_of(parameters["endpoint"]) if "endpoint" in parameters else None
    except StoreUrlInvalid as problem:
        raise MasterKeyRefused(f"a master key in KMS: {problem}") from problem
    return await KmsMasterKey.open(KmsClient(region=region, endpoint=endpoint), key)


async def _open_vault(rest: str, vault: Callable[[], VaultClient]) -> MasterKey:
    from kiseki.security.vault_master_key import VaultMasterKey  # noqa: PLC0415  # it needs a library of its own

    mount, _, key = rest.strip("/").rpartition("/")
    if not mount or not key or "?" in rest or "#" in rest:
        raise MasterKeyRefused("a master key in Vault is vault-transit://<mount>/<key>")
    return await VaultMasterKey.open(vault(), mount=mount, key=key)


def _path(setting: str) -> Path:
    if setting.startswith("file://"):
        path = unquote(setting.removeprefix("file://"))
        if not path.startswith("/"):
            raise MasterKeyRefused("a file of a master key is file:///path, with three slashes")
        return Path(path)
    scheme, separator, _ = setting.partition("://")
    if separator and scheme.isascii() and scheme.replace("-", "").replace("+", "").isalnum():
        raise MasterKeyRefused(f"the setting of a master key is {_FORMS}")
    return Path(setting.removeprefix("file:"))
