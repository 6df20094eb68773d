"""Every attack of `attacks.py` on a running service: the answer of the wire contract, in bounded time, nothing written,
and nothing of the inside in the answer or the log."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.client import Client, Reply
from tests.security.attacks import ATTACKS, CREATE, PERSON, RAW, Attack, RawAttack
from tests.security.served import Served, served

ROOT = Path(__file__).parents[2]
# What no answer and no log may hold, whatever was sent; what an attack sends itself is not repeated either.
LEAKS = re.compile(
    rf"Traceback|File \"|\.py\b|/site-packages|/usr/|{re.escape(str(ROOT))}|/tmp/|/etc/"
    r"|\bSELECT\b|\bINSERT\b|\bDROP\b|sqlite|msgspec"
    r"|graphql[-_]core|graphql\.|uvicorn|httptools|sqlalchemy|asyncpg|python|did you mean|object at 0x|BEGIN |Exception"
    r"|[a-z]Error:",
    re.IGNORECASE,
)
# Of the log: its own logger names and the banner are not of the attack.
LOG_LEAKS = re.compile(
    r"Traceback|File \"|\bSELECT\b|\bINSERT\b|\bDROP\b|/etc/|alert\(1\)|Lovelace|ada@example|eyJhbGciOi|[a-z]Error:"
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("attacked")) as running:
        yield running


async def send(service: Served, attack: Attack) -> Reply:
    fields = {} if attack.content_type is None else {"content-type": attack.content_type}
    async with asyncio.timeout(30), Client(service.port(attack.api)) as client:
        return await client.request(attack.method, attack.path, attack.body, {**fields, **attack.headers})


def code_of(reply: Reply) -> str | None:
    if "json" not in reply.headers.get("content-type", ""):
        return None
    body = reply.json()
    if "code" in body:
        return str(body["code"])
    errors = body.get("errors")
    return str(errors[0]["extensions"]["code"]) if errors else None


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
async def test_attack(service: Served, attack: Attack) -> None:
    before, log = service.commits(), len(service.log())
    started = time.monotonic()
    reply = await send(service, attack)
    seconds = time.monotonic() - started
    shown = reply.body[:600]
    assert reply.status == attack.status, shown
    assert attack.code is None or code_of(reply) == attack.code, shown
    assert seconds < attack.seconds
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["cache-control"] == "no-store"
    assert "content-security-policy" in reply.headers
    assert "server" not in reply.headers
    if "html" not in reply.headers["content-type"]:
        assert LEAKS.search(reply.body.decode()) is None, shown
        assert len(reply.body) < 20_000
    if reply.status >= 400:
        _is_problem(reply)
    assert service.commits() == before
    assert LOG_LEAKS.search(service.log()[log:]) is None, service.log()[log:]
    healthy = await service.graphql(attack.api, "{ __typename }")
    assert healthy.status == 200


def _is_problem(reply: Reply) -> None:
    assert reply.headers["content-type"] == "application/problem+json"
    body = json.loads(reply.body)
    assert {"type", "title", "status", "detail", "code", "traceId"} <= body.keys()
    assert body["status"] == reply.status
    assert re.fullmatch(r"[0-9a-f]{32}", body["traceId"])
    if reply.status == 401:
        assert reply.headers["www-authenticate"].startswith('Bearer realm="kiseki"')
    if reply.status == 405:
        assert "POST" in reply.headers["allow"] or "GET" in reply.headers["allow"]


@pytest.mark.parametrize("attack", RAW, ids=lambda attack: attack.name)
async def test_raw_attack(service: Served, attack: RawAttack) -> None:
    before, log = service.commits(), len(service.log())
    async with asyncio.timeout(30):
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port(attack.api))
        writer.write(attack.sent)
        await writer.drain()
        received = b""
        try:
            # What is not refused would be waited for; an answer that leaves the connection open ends this side's wait.
            async with asyncio.timeout(4):
                while part := await reader.read(65_536):
                    received += part
        except (TimeoutError, ConnectionResetError):
            pass
        writer.close()
    statuses = [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3})", received)]
    assert (statuses or [0])[0] in attack.statuses, received[:600]
    assert len(statuses) <= attack.answers, received[:2_000]
    assert 200 not in statuses[1:]
    assert LEAKS.search(received.decode("latin-1")) is None, received[:600]
    assert service.commits() == before
    assert LOG_LEAKS.search(service.log()[log:]) is None
    assert (await service.graphql(attack.api, "{ __typename }")).status == 200


def test_names_are_unique_and_the_list_is_long() -> None:
    names = [*(attack.name for attack in ATTACKS), *(attack.name for attack in RAW)]
    assert len(set(names)) == len(names)
    assert len(names) > 300


def test_a_good_request_shows_that_the_others_could_have_written(tmp_path: Path) -> None:
    with served(tmp_path) as running:
        reply = asyncio.run(running.graphql("command", CREATE, {"input": PERSON}))
        assert reply.status == 200
        assert reply.json()["data"]["createUserAccount"]["id"]
        assert running.commits() == 1
