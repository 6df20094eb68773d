"""Where the keys for AWS come from, and how they are renewed while calls go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from kiseki.clients.aws_credentials import AwsCredentials, AwsCredentialsMissing
from kiseki.clients.aws_signing import AwsKeys
from kiseki.clients.dynamodb import DynamoDbAddress, DynamoDbClient, DynamoDbUnavailable
from tests.integration.clients.fake_dynamodb import FakeDynamoDb


class ContainerAgent:
    """What gives credentials to a container (ECS, EKS), on loopback: others each time, for as long as told."""

    def __init__(self) -> None:
        self.lasting = timedelta(hours=6)
        self.given = 0
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.status = 200
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0.1)
        self.url = ""

    async def start(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = "http://{}:{}/keys".format(*self._runner.addresses[0][:2])

    async def stop(self) -> None:
        self.may_answer.set()
        await self._runner.cleanup()

    async def _answer(self, _: web.BaseRequest) -> web.Response:
        self.asked.set()
        await self.may_answer.wait()
        if self.status != 200:
            return web.json_response({"message": "no"}, status=self.status)
        self.given += 1
        answer: dict[str, Any] = {
            "AccessKeyId": f"ASIA{self.given}",
            "SecretAccessKey": "secret",
            "Token": "token",
            "Expiration": (datetime.now(UTC) + self.lasting).isoformat(timespec="seconds").replace("+00:00", "Z"),
        }
        return web.json_response(answer)


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials anywhere."""
    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_PROFILE",
        "AWS_DEFAULT_PROFILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_ROLE_ARN",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


@pytest.fixture
async def agent(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ContainerAgent]:
    agent = ContainerAgent()
    await agent.start()
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", agent.url)
    yield agent
    await agent.stop()


@pytest.fixture
async def credentials() -> AsyncIterator[AwsCredentials]:
    found = AwsCredentials(region="eu-west-1")
    yield found
    await found.close()


async def test_keys_of_the_environment(credentials: AwsCredentials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert credentials.at_hand() is None
    assert await credentials.keys() == AwsKeys("AKIA1", "secret", None)
    assert credentials.at_hand() == AwsKeys("AKIA1", "secret", None)


async def test_keys_of_a_profile(credentials: AwsCredentials, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text("[other]\naws_access_key_id = AKIA2\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert await credentials.keys() == AwsKeys("AKIA2", "secret", None)


async def test_no_keys_anywhere_says_what_to_set(credentials: AwsCredentials) -> None:
    with pytest.raises(AwsCredentialsMissing) as caught:
        await credentials.keys()
    assert "AWS_ACCESS_KEY_ID" in str(caught.value)
    assert "an emulator takes any" in str(caught.value)


@pytest.mark.parametrize(
    "variables",
    [
        {"AWS_PROFILE": "unknown"},
        {"AWS_ACCESS_KEY_ID": "AKIA1"},
        {"AWS_ROLE_ARN": "arn:aws:iam::1:role/r", "AWS_WEB_IDENTITY_TOKEN_FILE": "/nonexistent/token"},
    ],
    ids=["profile", "half", "web identity"],
)
async def test_what_the_chain_can_not_use_is_missing(
    credentials: AwsCredentials, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(AwsCredentialsMissing, match=r"\Ano AWS credentials: .+\Z"):
        await credentials.keys()


async def test_all_who_wait_share_one_request(agent: ContainerAgent, credentials: AwsCredentials) -> None:
    agent.may_answer.clear()
    waiting = [asyncio.create_task(credentials.keys()) for _ in range(10)]
    await agent.asked.wait()
    waiting.pop().cancel()
    agent.may_answer.set()
    assert {keys.access_key for keys in await asyncio.gather(*waiting)} == {"ASIA1"}
    assert credentials.at_hand() == AwsKeys("ASIA1", "secret", "token")


async def test_keys_that_end_soon_are_renewed_while_they_are_used(
    agent: ContainerAgent, credentials: AwsCredentials
) -> None:
    agent.lasting = timedelta(minutes=5)
    before = await credentials.keys()
    credentials._ask_at = 0.0  # as if that were long ago
    agent.asked.clear()
    agent.may_answer.clear()
    agent.lasting = timedelta(hours=6)
    given = agent.given
    assert credentials.at_hand() == before
    await agent.asked.wait()
    assert credentials.at_hand() == before, "nobody waits for it"
    agent.may_answer.set()
    while credentials.at_hand() == before:
        await asyncio.sleep(0.01)  # the test's own time limit ends it
    assert credentials.at_hand() == AwsKeys(f"ASIA{given + 1}", "secret", "token")
    assert agent.given == given + 1


async def test_a_renewal_that_fails_is_tried_again_and_old_keys_go_on(
    agent: ContainerAgent, credentials: AwsCredentials, caplog: pytest.LogCaptureFixture
) -> None:
    agent.lasting = timedelta(minutes=5)
    before = await credentials.keys()
    agent.status = 500
    credentials._ask_at = 0.0  # as if that were long ago
    assert credentials.at_hand() == before
    assert credentials._asking is not None
    with caplog.at_level(logging.WARNING):
        await asyncio.wait([credentials._asking])
        await asyncio.sleep(0)
    assert any("AWS credentials can't be had now" in message for message in caplog.messages)
    assert credentials.at_hand() == before
    assert credentials._asking is None, "not again at once"


async def test_keys_at_their_end_are_not_used(agent: ContainerAgent, credentials: AwsCredentials) -> None:
    agent.lasting = timedelta(seconds=30)
    before = await credentials.keys()
    assert credentials.at_hand() is None
    agent.lasting = timedelta(hours=6)
    after = await credentials.keys()
    assert after != before
    assert credentials.at_hand() == after


async def test_a_call_waits_for_credentials_until_its_deadline(agent: ContainerAgent, fake: FakeDynamoDb) -> None:
    agent.may_answer.clear()
    client = DynamoDbClient(DynamoDbAddress(prefix="k", region="eu-west-1", endpoint=fake.endpoint))
    with pytest.raises(DynamoDbUnavailable, match="GetItem on k-t: no AWS credentials were found in time"):
        await client.call("GetItem", {"TableName": "k-t"}, deadline=0.3)
    agent.may_answer.set()
    assert await client.call("GetItem", {"TableName": "k-t"}) == {}
    await client.close()


async def test_a_call_without_credentials_names_the_table(fake: FakeDynamoDb) -> None:
    client = DynamoDbClient(DynamoDbAddress(prefix="k", region="eu-west-1", endpoint=fake.endpoint))
    with pytest.raises(DynamoDbUnavailable, match="GetItem on k-t: no AWS credentials found: set AWS_PROFILE"):
        await client.call("GetItem", {"TableName": "k-t"})
    await client.close()
    assert fake.requests == []
