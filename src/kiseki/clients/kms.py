"""`KmsClient`: encrypts and decrypts with a key of AWS KMS. Used by the master key on KMS.

https://docs.aws.amazon.com/kms/latest/APIReference/API_Encrypt.html
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping

from kiseki.clients.aws_json import AwsJsonClient, AwsUnavailable

__all__ = ["KmsClient"]


class KmsClient:
    """Calls KMS in one region. Belongs to one event loop."""

    def __init__(
        self, *, region: str, endpoint: str | None = None, connections: int = 32, deadline: float = 6.0
    ) -> None:
        """At most `connections` calls run at once; `deadline` of a call in seconds."""
        self._calls = AwsJsonClient(
            service="kms",
            target="TrentService",
            region=region,
            endpoint=endpoint,
            connections=connections,
            deadline=deadline,
        )

    async def encrypt(self, key: str, plain: bytes, context: Mapping[str, str]) -> tuple[str, bytes]:
        """The ARN of the key that encrypted, and the ciphertext. Raises AwsUnavailable, AwsRefused."""
        answer = await self._calls.call(
            "Encrypt",
            {"KeyId": key, "Plaintext": b64encode(plain).decode(), "EncryptionContext": context},
        )
        return _text(answer.get("KeyId")), _bytes(answer.get("CiphertextBlob"))

    async def decrypt(self, key: str, ciphertext: bytes, context: Mapping[str, str]) -> bytes:
        """The plaintext; only that key is used. Raises AwsUnavailable, AwsRefused."""
        answer = await self._calls.call(
            "Decrypt",
            {"KeyId": key, "CiphertextBlob": b64encode(ciphertext).decode(), "EncryptionContext": context},
        )
        return _bytes(answer.get("Plaintext"))

    async def close(self) -> None:
        """Lets go of connections; again is fine."""
        await self._calls.close()


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise AwsUnavailable("the answer of KMS is incomplete")
    return value


def _bytes(value: object) -> bytes:
    try:
        return b64decode(_text(value), validate=True)
    except ValueError:
        raise AwsUnavailable("the answer of KMS is damaged") from None
