"""`SecretsManagerClient`: reads secrets of AWS Secrets Manager. Used by the secrets of settings."""

from __future__ import annotations

from kiseki.clients.aws_json import AwsJsonClient, AwsRefused

__all__ = ["SecretsManagerClient"]


class SecretsManagerClient:
    """Calls Secrets Manager in one region. Belongs to one event loop."""

    def __init__(self, *, region: str, endpoint: str | None = None, deadline: float = 6.0) -> None:
        """`deadline` of a call in seconds."""
        self._calls = AwsJsonClient(
            service="secretsmanager",
            target="secretsmanager",
            region=region,
            endpoint=endpoint,
            connections=4,
            deadline=deadline,
        )

    async def current(self, secret_id: str) -> str:
        """The text that is current (AWSCURRENT). Raises AwsUnavailable, AwsRefused."""
        answer = await self._calls.call("GetSecretValue", {"SecretId": secret_id, "VersionStage": "AWSCURRENT"})
        text = answer.get("SecretString")
        if not isinstance(text, str):
            raise AwsRefused("the secret is binary; store it as text", kind="BinarySecret")
        return text

    async def close(self) -> None:
        """Lets go of connections; again is fine."""
        await self._calls.close()
