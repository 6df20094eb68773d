"""The cipher of one subject: AES-256-GCM with the subject's data keys. The Protector hands it to the codecs."""

from __future__ import annotations

import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kiseki.kernel.errors import KisekiError
from kiseki.kernel.ports import SubjectKeyMissing

__all__ = ["DATA_KEY_BYTES", "DataKeyCipher", "SealBroken"]

DATA_KEY_BYTES: Final = 32

_NONCE_BYTES: Final = 12
_LEAST_BYTES: Final = _NONCE_BYTES + 16
_FORMAT: Final = b"kiseki-sealed-1|"
"""Part of what is authenticated, so that a later format can never be taken for this one."""


class SealBroken(KisekiError):
    """Sealed data can't be opened: it was altered, or sealed for another subject, event or field."""

    code = "SEAL_BROKEN"


class DataKeyCipher:
    """Seals with the newest of a subject's data keys and opens with any of them (kernel.ports.SubjectCipher).

    AES-256-GCM with a random nonce of 96 bits and a tag of 128 bits (NIST SP 800-38D, 5.2.1.1 and 8.2.2). Random
    nonces allow 2^32 seals under one key (8.3); one person's data stays far below. The length of what is sealed
    can be told from the ciphertext, nothing else.
    """

    __slots__ = ("_by_id", "_newest", "_prefix", "_subject")

    def __init__(self, subject: str, data_keys: Mapping[str, bytes]) -> None:
        """`data_keys` are 32 bytes each by key id, oldest first, at least one; a key id holds no dot."""
        self._subject = subject
        self._by_id = {key_id: AESGCM(key) for key_id, key in data_keys.items()}
        newest = next(reversed(self._by_id))
        self._newest = self._by_id[newest]
        self._prefix = newest + "."

    def seal(self, plaintext: bytes, context: bytes) -> str:
        """`<key id>.<base64url of nonce and ciphertext, without padding>`, bound to the context."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = nonce + self._newest.encrypt(nonce, plaintext, _FORMAT + context)
        return self._prefix + urlsafe_b64encode(sealed).rstrip(b"=").decode()

    def open(self, sealed: str, context: bytes) -> bytes:
        """The plaintext.

        Raises SubjectKeyMissing when the text names a key that the subject does not have, SealBroken when it was
        altered or sealed for another context.
        """
        try:
            key_id, _, text = sealed.partition(".")
            raw = urlsafe_b64decode(text + "==")
            # Python decodes more than one text to the same bytes; only the one that `seal` writes is accepted.
            if len(raw) < _LEAST_BYTES or urlsafe_b64encode(raw).rstrip(b"=").decode() != text:
                raise ValueError
            key = self._by_id.get(key_id)
            if key is not None:
                return key.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _FORMAT + context)
        # Also for a value that is no text at all: what was stored may be anything.
        except (InvalidTag, ValueError, AttributeError, TypeError):
            raise SealBroken(
                f"sealed data of {self._subject} can't be opened: it was altered, or sealed for another place"
            ) from None
        raise SubjectKeyMissing(
            f"sealed data names a key that {self._subject} does not have: it belongs to another subject, was altered, "
            "or the key store does not belong to this journal"
        )
