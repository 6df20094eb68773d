"""Keyed hashes: of claimed values and idempotency keys, and the pseudonyms of actors. Used by the Protector."""

from __future__ import annotations

import hmac
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kiseki.kernel.errors import DefinitionError

__all__ = ["ROOT_BYTES", "Digests"]

ROOT_BYTES: Final = 32

_PSEUDONYM_HEX: Final = 32


class Digests:
    """HMAC-SHA-256 (RFC 2104) under keys derived from one root by HKDF (RFC 5869), one label for each use.

    The root is a random secret of the key store, not derived from the master key: digests are in journals for ever and
    have to stay the same when the master key is rotated.
    """

    __slots__ = ("_digest_key", "_pseudonym_key", "key_store_id", "ledger_key")

    def __init__(self, root: bytes) -> None:
        """`root` is 32 random bytes. Raises DefinitionError for another length."""
        if len(root) != ROOT_BYTES:
            raise DefinitionError(f"the root of digests is {ROOT_BYTES} bytes, not {len(root)}")
        self._digest_key = _derive(root, b"kiseki/digest/1")
        self._pseudonym_key = _derive(root, b"kiseki/pseudonym/1")
        self.ledger_key = _derive(root, b"kiseki/erasure-ledger/1")
        """Authenticates the ledger of erasures: outside of it, and the same in every copy of the key store."""
        self.key_store_id = _derive(root, b"kiseki/key-store-id/1")[:16].hex()
        """Tells one key store from another (32 hex digits), and nothing of the root. A restored copy has the same."""

    def digest(self, scope: str, value: str) -> str:
        """64 hex digits, the same for the same scope and value."""
        return hmac.digest(self._digest_key, _pair(scope, value), "sha256").hex()

    def pseudonym(self, issuer: str, subject: str) -> str:
        """Stands for an actor in events and logs: 32 hex digits (128 bits)."""
        return hmac.digest(self._pseudonym_key, _pair(issuer, subject), "sha256").hex()[:_PSEUDONYM_HEX]


def _derive(root: bytes, label: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=label).derive(root)


def _pair(first: str, second: str) -> bytes:
    """Both texts so that no other two give the same bytes. Lone surrogates too: a hash must not fail on its input."""
    head = first.encode("utf-8", "surrogatepass")
    return len(head).to_bytes(4) + head + second.encode("utf-8", "surrogatepass")
