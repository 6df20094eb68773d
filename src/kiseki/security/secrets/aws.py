"""Secrets in AWS Secrets Manager. Used by `SecretSource` for aws-sm:// references; needs the extra `aws`."""

from __future__ import annotations

from typing import Any

import msgspec

from kiseki.clients.aws_json import AwsRefused, AwsUnavailable, endpoint_of
from kiseki.clients.aws_secrets import SecretsManagerClient
from kiseki.clients.urls import StoreUrlInvalid
from kiseki.security.secrets.reading import SecretRefused, SecretUnavailable
from kiseki.security.secrets.reference import SecretReference

__all__ = ["AwsSecrets"]

_ADVICE = {
    "ResourceNotFoundException": "there is no such secret in this account and region",
    "AccessDeniedException": "the role may not read it: allow secretsmanager:GetSecretValue, and decryption by its key",
    "DecryptionFailure": "its key in KMS can't be used",
    "InvalidRequestException": "it is being deleted, or has no current version",
    "BinarySecret": "it is binary; store it as text",
}


class AwsSecrets:
    """Reads current versions (a SecretReader), with one client for each region."""

    def __init__(self, *, region: str = "", deadline: float = 5.0) -> None:
        """`region` for references that name none. `deadline` of one reading in seconds."""
        self._region = region
        self._deadline = deadline
        self._clients: dict[tuple[str, str], SecretsManagerClient] = {}

    async def read(self, reference: SecretReference) -> str:
        """As SecretReader."""
        try:
            text = await self._client(reference).current(reference.name)
        except StoreUrlInvalid as problem:
            raise SecretRefused(f"{reference.label}: {problem}") from problem
        except AwsUnavailable as problem:
            raise SecretUnavailable(f"{reference.label} can't be read now: {problem}") from problem
        except AwsRefused as problem:
            advice = _ADVICE.get(problem.kind, problem.kind)
            raise SecretRefused(f"{reference.label} can't be read: {advice}") from problem
        return text if not reference.field else _member(text, reference)

    async def close(self) -> None:
        """As SecretReader."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.close()

    def _client(self, reference: SecretReference) -> SecretsManagerClient:
        region = reference.region or self._region
        if not region:
            raise SecretRefused(
                f"{reference.label}: name a region, as in aws-sm://id?region=eu-west-1, or set AWS_REGION"
            )
        where = (region, reference.endpoint)
        if where not in self._clients:
            endpoint = endpoint_of(reference.endpoint) if reference.endpoint else None
            self._clients[where] = SecretsManagerClient(region=region, endpoint=endpoint, deadline=self._deadline)
        return self._clients[where]


def _member(text: str, reference: SecretReference) -> str:
    try:
        decoded: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError:
        # Not as a cause: its message may repeat a part of the secret.
        raise SecretRefused(f"{reference.label}: the secret is no JSON object") from None
    value = decoded.get(reference.field)
    if isinstance(value, int) and not isinstance(value, bool):  # a port, a PIN
        return str(value)
    if not isinstance(value, str) or not value:
        raise SecretRefused(f"{reference.label}: the secret has no text under this key")
    return value
