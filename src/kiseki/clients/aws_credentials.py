"""Where the keys come from that requests to AWS are signed with: botocore's chain, asked without blocking the loop.

The chain is that of every AWS tool: environment, web identity, profile, container, instance metadata
(https://docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html). Used by the DynamoDB client.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError

from kiseki.clients.aws_signing import AwsKeys
from kiseki.kernel.errors import Unavailable

__all__ = ["AwsCredentials", "AwsCredentialsMissing"]

_log = logging.getLogger(__name__)
_ASK_AGAIN: Final = 10.0
_LAST_MOMENT: Final = 60
"""Keys that end sooner than this are not used any more: seconds."""
_HELP: Final = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the task a role"


class AwsCredentialsMissing(Unavailable):
    """There are no credentials for AWS, or they can't be renewed now."""

    code = "AWS_CREDENTIALS"


class AwsCredentials:
    """The keys of now: found on first use, renewed in the background ahead of their end. Belongs to one event loop."""

    def __init__(self, *, region: str) -> None:
        """`region`: where roles are asked for."""
        self._region = region
        self._found: Any = None
        self._keys: AwsKeys | None = None
        self._asking: asyncio.Task[AwsKeys] | None = None
        self._ask_at = float("-inf")

    def at_hand(self) -> AwsKeys | None:
        """The keys to sign with now, if there are any still good. Those that end soon are renewed meanwhile."""
        if self._keys is not None and self._is_due():
            if self._is_due(_LAST_MOMENT):
                return None
            if asyncio.get_running_loop().time() >= self._ask_at:
                self._ask_soon()
        return self._keys

    async def keys(self) -> AwsKeys:
        """The keys to sign with now, asked for if need be. Raises AwsCredentialsMissing."""
        keys = self.at_hand()
        # One request for all who wait, and none of those who give up takes it along.
        return keys if keys is not None else await asyncio.shield(self._ask_soon())

    def forget(self, keys: AwsKeys) -> None:
        """These were refused: the chain is gone through again, not too often. A file may hold new ones."""
        if self._keys == keys and asyncio.get_running_loop().time() >= self._ask_at:
            self._found = self._keys = None

    async def close(self) -> None:
        """Stops asking."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    def _is_due(self, seconds: int | None = None) -> bool:
        due = getattr(self._found, "refresh_needed", None)  # only those that end have it
        return due is not None and bool(due(seconds))

    def _ask_soon(self) -> asyncio.Task[AwsKeys]:
        if self._asking is None:
            self._ask_at = asyncio.get_running_loop().time() + _ASK_AGAIN
            self._asking = asyncio.create_task(self._ask(), name="AWS credentials")
            self._asking.add_done_callback(self._asked)
        return self._asking

    async def _ask(self) -> AwsKeys:
        try:
            found = self._found
            if found is None:
                session = await asyncio.to_thread(get_session)  # reads files and imports much
                session.set_config_variable("region", self._region)
                found = await session.get_credentials()
            if found is None:
                raise AwsCredentialsMissing(f"no AWS credentials found: {_HELP} (an emulator takes any)")
            frozen = await found.get_frozen_credentials()
        except (BotoCoreError, ClientError, OSError, KeyError, TypeError, ValueError) as problem:
            # From files, services and programs. The text may name a profile, a path or a role, never a key.
            reason = " ".join(str(problem).split())
            raise AwsCredentialsMissing(f"no AWS credentials: {reason}") from problem
        self._found = found
        self._keys = AwsKeys(frozen.access_key, frozen.secret_key, frozen.token)
        return self._keys

    def _asked(self, task: asyncio.Task[AwsKeys]) -> None:
        self._asking = None
        if not task.cancelled() and (problem := task.exception()) is not None:
            _log.warning("AWS credentials can't be had now: %s", problem)
