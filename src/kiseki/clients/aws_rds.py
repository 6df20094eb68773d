"""`RdsTokens`: logging in to PostgreSQL on RDS with IAM: a token signed for each new connection instead of a password.

Used by `postgres` for `auth=aws-iam`.
https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/UsingWithRDS.IAMDBAuth.html
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from kiseki.clients.aws_credentials import AwsCredentials
from kiseki.clients.aws_json import REGION
from kiseki.clients.aws_signing import AwsKeys, presigned
from kiseki.clients.urls import StoreUrlInvalid
from kiseki.kernel.errors import Unavailable

__all__ = ["RdsTokens", "rds_token"]

_SECONDS: Final = 900
"""How long RDS takes a token; a connection that is open stays open."""
_PATIENCE: Final = 5.0


class RdsTokens:
    """Tokens for one user of one database server (a PasswordSource). Signing asks nobody; AWS keys are found once."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        user: str,
        region: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`host` as RDS names it: a token is for that name. Raises StoreUrlInvalid for a region that is none."""
        if not REGION.fullmatch(region):
            raise StoreUrlInvalid("auth=aws-iam needs a region, such as region=eu-west-1")
        self._host = host
        self._port = port
        self._user = user
        self._region = region
        self._now = now
        self._credentials: AwsCredentials | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._last: AwsKeys | None = None

    def __repr__(self) -> str:
        return f"RdsTokens({self._host}:{self._port})"

    async def password(self) -> str:
        """As PasswordSource: a new token. Raises AwsCredentialsMissing, Unavailable."""
        try:
            async with asyncio.timeout(_PATIENCE):
                self._last = await self._keys_of_this_loop().keys()
        except TimeoutError as problem:
            raise Unavailable("no AWS credentials were found in time to log in to the database") from problem
        return rds_token(
            self._last, host=self._host, port=self._port, user=self._user, region=self._region, now=self._now()
        )

    async def renewed(self) -> str:
        """As PasswordSource: with AWS keys that are looked for again."""
        if self._last is not None:
            self._keys_of_this_loop().forget(self._last)
        return await self.password()

    def _keys_of_this_loop(self) -> AwsCredentials:
        loop = asyncio.get_running_loop()
        if self._credentials is None or self._loop is not loop:
            self._credentials, self._loop = AwsCredentials(region=self._region), loop
        return self._credentials


def rds_token(keys: AwsKeys, *, host: str, port: int, user: str, region: str, now: datetime) -> str:
    """The password that RDS takes for 15 minutes from `now` (UTC)."""
    return presigned(
        keys,
        host=f"{host}:{port}",
        service="rds-db",
        region=region,
        parameters={"Action": "connect", "DBUser": user},
        now=now,
        seconds=_SECONDS,
    )
