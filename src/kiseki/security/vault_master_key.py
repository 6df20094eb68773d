"""`VaultMasterKey`: a master key in the transit engine of HashiCorp Vault or OpenBao, which never leaves it.

Used by whoever composes keys with Vault. https://developer.hashicorp.com/vault/api-docs/secret/transit
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any, Final, Self

from kiseki.clients.vault import VaultClient, VaultRefused, VaultUnavailable
from kiseki.kernel.errors import KisekiError
from kiseki.security.batched import BatchedCalls
from kiseki.security.master_key import (
    MasterKeyMissing,
    MasterKeyRefused,
    MasterKeyUnavailable,
    WrappedKeyBroken,
    wrapped_by,
)

__all__ = ["VaultMasterKey"]

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,120}")
_MOUNT: Final = re.compile(r"[A-Za-z0-9_.-]{1,120}(/[A-Za-z0-9_.-]{1,120}){0,7}")
_CIPHERTEXT: Final = re.compile(r"vault:v([1-9][0-9]{0,8}):[A-Za-z0-9+/=]{1,100000}")
_ID: Final = re.compile(r"vault-transit:(.+):v([1-9][0-9]{0,8})")
_AT_ONCE: Final = 4
_GROUP: Final = 100
"""OpenBao takes no more than 1,000 strings in a request, and each item has four."""
_PROBE: Final = b"master-key-probe"


class VaultMasterKey:
    """A key of a transit engine (a MasterKey). Belongs to one event loop.

    The context is authenticated as associated data, so the key's type has to be one that does so (aes256-gcm96,
    chacha20-poly1305); `open` tries it. What is asked at one moment, or while enough calls run, goes in one call. The
    id names the version of the key: after Vault rotated it, re-wrapping moves everything to the newest version, and
    `min_decryption_version` may then be raised.
    """

    def __init__(self, client: VaultClient, *, mount: str, key: str) -> None:
        """`open` is the way in."""
        self._client = client
        self._mount = mount
        self._key = key
        self._version = 1
        self._wraps: BatchedCalls[tuple[bytes, bytes], dict[tuple[bytes, bytes], str | KisekiError]] = BatchedCalls(
            self._encrypt, at_once=_AT_ONCE, group=_GROUP
        )
        self._unwraps: BatchedCalls[tuple[str, bytes], dict[tuple[str, bytes], bytes | KisekiError]] = BatchedCalls(
            self._decrypt, at_once=_AT_ONCE, group=_GROUP
        )

    @classmethod
    async def open(cls, client: VaultClient, *, mount: str, key: str) -> Self:
        """Wraps and unwraps once, also with the wrong context, so that what is missing shows at the start.

        Needs `update` on <mount>/encrypt/<key> and <mount>/decrypt/<key> and nothing else (with `create` on the first,
        Vault would make a key that is not there). Closes the client when it fails.
        Raises MasterKeyRefused, MasterKeyUnavailable.
        """
        try:
            if (
                not _MOUNT.fullmatch(mount)
                or not _NAME.fullmatch(key)
                or ".." in mount.split("/")
                or key in (".", "..")
            ):
                raise MasterKeyRefused("a master key in Vault is vault-transit://<mount>/<key>")
            master_key = cls(client, mount=mount, key=key)
            wrapped = await master_key.wrap(_PROBE, _PROBE)
            if await master_key.unwrap(wrapped, _PROBE) != _PROBE:
                raise MasterKeyUnavailable(f"{client.name} decrypts to something else than it encrypted")
            try:
                await master_key.unwrap(wrapped, _PROBE + b"2")
            except WrappedKeyBroken:
                return master_key
            raise MasterKeyRefused(
                f"the master key {mount}/{key} does not bind what it wraps to a context: use a key of the type "
                "aes256-gcm96"
            )
        except BaseException:
            await client.close()
            raise

    @property
    def key_id(self) -> str:
        """As KeyWrapper; changes when Vault is seen to wrap with a newer version."""
        return self._id(self._version)

    def reads(self, key_id: str) -> bool:
        """As MasterKey: any version."""
        match = _ID.fullmatch(key_id)
        return match is not None and match[1] == f"{self._mount}/{self._key}"

    async def wrap(self, plain: bytes, context: bytes) -> bytes:
        """As KeyWrapper."""
        item = (plain, context)
        ciphertext = (await self._wraps.ask([item]))[item]
        if isinstance(ciphertext, KisekiError):
            raise ciphertext
        match = _CIPHERTEXT.fullmatch(ciphertext)
        if match is None:
            raise MasterKeyUnavailable(f"{self._client.name} answers with something that is no ciphertext")
        version = int(match[1])
        self._version = max(self._version, version)
        return f"{self._id(version)}\0{ciphertext}".encode()

    async def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """As KeyWrapper."""
        key_id = wrapped_by(wrapped)
        if not self.reads(key_id):
            raise MasterKeyMissing(f"a key was wrapped by the master key {key_id}; this process has {self.key_id}")
        ciphertext = wrapped[len(key_id) + 1 :].decode("ascii", "replace")
        match = _CIPHERTEXT.fullmatch(ciphertext)
        if match is None or self._id(int(match[1])) != key_id:
            raise _broken()
        item = (ciphertext, context)
        plain = (await self._unwraps.ask([item]))[item]
        if isinstance(plain, KisekiError):
            raise plain
        return plain

    async def close(self) -> None:
        """As MasterKey."""
        await self._client.close()

    def _id(self, version: int) -> str:
        return f"vault-transit:{self._mount}/{self._key}:v{version}"

    async def _encrypt(self, items: list[tuple[bytes, bytes]]) -> dict[tuple[bytes, bytes], str | KisekiError]:
        unique = list(dict.fromkeys(items))
        request = [
            {"plaintext": b64encode(plain).decode(), "associated_data": b64encode(context).decode()}
            for plain, context in unique
        ]
        try:
            results = await self._batch("encrypt", request)
        except VaultRefused as problem:
            # 400: also when there is no such key, since making one is not allowed.
            raise self._refusal(problem) from problem
        found: dict[tuple[bytes, bytes], str | KisekiError] = {}
        for item, result in zip(unique, results, strict=True):
            ciphertext = result.get("ciphertext")
            found[item] = ciphertext if isinstance(ciphertext, str) else self._unusable()
        return found

    async def _decrypt(self, items: list[tuple[str, bytes]]) -> dict[tuple[str, bytes], bytes | KisekiError]:
        unique = list(dict.fromkeys(items))
        request = [
            {"ciphertext": ciphertext, "associated_data": b64encode(context).decode()} for ciphertext, context in unique
        ]
        try:
            results = await self._batch("decrypt", request)
        except VaultRefused as problem:
            if problem.status == 400:  # not one of them can be read
                return {item: _broken() for item in unique}
            raise self._refusal(problem) from problem
        return {item: _plain(result) for item, result in zip(unique, results, strict=True)}

    async def _batch(self, operation: str, items: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
        try:
            answer = await self._client.write(
                f"{self._mount}/{operation}/{self._key}",
                # Else one that is broken would hide all others of the call.
                {"batch_input": items, "partial_failure_response_code": 200},
            )
        except VaultUnavailable as problem:
            raise MasterKeyUnavailable(
                f"the master key {self._mount}/{self._key} can't be used: {problem}",
                retry_after=problem.retry_after,
            ) from problem
        data = answer.get("data")
        results = data.get("batch_results") if isinstance(data, dict) else None
        if (
            not isinstance(results, list)
            or len(results) != len(items)
            or not all(isinstance(each, dict) for each in results)
        ):
            raise MasterKeyUnavailable(f"the answer of {self._client.name} is incomplete")
        return results

    def _refusal(self, problem: VaultRefused) -> KisekiError:
        if problem.status in (401, 403):  # people can mend it: what waits for a key waits on
            return MasterKeyUnavailable(
                f"the master key {self._mount}/{self._key} can't be used: the policy of the token has to allow update "
                f"on {self._mount}/encrypt/{self._key} and {self._mount}/decrypt/{self._key}"
            )
        return self._unusable()

    def _unusable(self) -> KisekiError:
        return MasterKeyRefused(
            f"the master key {self._mount}/{self._key} does not wrap: make it in the transit engine, not derived, of "
            "the type aes256-gcm96"
        )


def _plain(result: dict[str, Any]) -> bytes | KisekiError:
    text = result.get("plaintext")
    if result.get("error") or not isinstance(text, str):
        return _broken()
    try:
        return b64decode(text, validate=True)
    except ValueError:
        return _broken()


def _broken() -> WrappedKeyBroken:
    return WrappedKeyBroken(
        "a wrapped key was altered, belongs to another subject, or its version of the key in Vault is gone"
    )
