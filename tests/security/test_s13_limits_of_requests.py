"""S13, what one request may be: every attack of `attacks.py` on a production service, over TLS and with a good token,
so that nothing but the limit in question stands in the way; sizes that hold while a body streams; slow clients, whose
connection is taken from them; and memory and descriptors are afterwards what they were."""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.client import ConnectionLost, Reply
from tests.security.attacks import ATTACKS, CREATE, PERSON, RAW, Attack, RawAttack
from tests.security.test_attacks import LEAKS, LOG_LEAKS, code_of
from tests.servers.production import Production, TlsClient

ANYTHING: Final = "{ __typename }"
IN_PRODUCTION: Final[dict[str, tuple[int, str | None]]] = {
    # Hosts are listed here, and forwarding headers of whoever is no proxy are nothing.
    "another host": (400, "INVALID_HOST"),
    "host by rebinding": (400, "INVALID_HOST"),
    "forged forwarding": (200, None),
    "forged Forwarded": (200, None),
}
WRITES: Final = ("forged forwarding", "forged Forwarded")


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    with Production(tmp_path_factory.mktemp("limits"), KEEP_ALIVE=2) as running:
        yield running


def expected(attack: Attack) -> tuple[int, str | None]:
    """Status and code in production."""
    return IN_PRODUCTION.get(attack.name) or attack.production or (attack.status, attack.code)


async def send(production: Production, client: TlsClient, attack: Attack) -> Reply:
    fields = {"authorization": f"Bearer {production.tokens.admin('attacker')}"}
    if attack.content_type is not None:
        fields["content-type"] = attack.content_type
    return await client.request(attack.method, attack.path, attack.body, {**fields, **attack.headers})


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
async def test_attack(production: Production, attack: Attack) -> None:
    before, log = production.commits(), len(production.log())
    started = time.monotonic()
    async with asyncio.timeout(30), production.client(attack.api) as client:
        reply = await send(production, client, attack)
        seconds = time.monotonic() - started
        shown = reply.body[:600]
        status, code = expected(attack)
        assert reply.status == status, shown
        assert code is None or code_of(reply) == code, shown
        assert seconds < attack.seconds
        assert LEAKS.search(reply.body.decode()) is None, shown
        assert len(reply.body) < 20_000
        assert LOG_LEAKS.search(production.log()[log:]) is None, production.log()[log:]
        assert production.commits() == before + (attack.name in WRITES)
        # The same client is served at once, on the same connection or another one.
        token = production.tokens.user()
        assert (await client.graphql(ANYTHING, authorization=f"Bearer {token}")).status == 200


@pytest.mark.parametrize("attack", RAW, ids=lambda attack: attack.name)
async def test_raw_attack(production: Production, attack: RawAttack) -> None:
    before, log = production.commits(), len(production.log())
    token = production.tokens.admin("attacker")
    head, separator, rest = attack.sent.partition(b"\r\n")
    sent = attack.sent
    if b"Host: localhost\r\n" in attack.sent and b"Authorization" not in attack.sent:
        # So that what is smuggled would be let in.
        sent = head + separator + f"Authorization: Bearer {token}\r\n".encode() + rest
    received = await production.raw(attack.api, sent, seconds=3)
    statuses = [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3})", received)]
    assert (statuses or [0])[0] in attack.statuses | {405}, received[:600]
    assert len(statuses) <= attack.answers, received[:2_000]
    assert 200 not in statuses[1:]
    assert LEAKS.search(received.decode("latin-1")) is None, received[:600]
    assert production.commits() == before
    assert LOG_LEAKS.search(production.log()[log:]) is None


def state(production: Production) -> tuple[int, float]:
    """Descriptors, and memory in MB."""
    assert production.service.process is not None
    about = Path(f"/proc/{production.service.process.pid}")
    resident = re.search(r"VmRSS:\s+(\d+) kB", (about / "status").read_text())
    assert resident is not None
    return len(os.listdir(about / "fd")), int(resident[1]) / 1024


async def test_after_all_of_them_memory_and_descriptors_are_what_they_were(tmp_path: Path) -> None:
    service = Production(tmp_path / "p")
    service.service.start()
    try:
        await service.service.ready()

        async def all_of_them() -> None:
            for attack in ATTACKS:
                async with asyncio.timeout(30), service.client(attack.api) as client:
                    assert (await send(service, client, attack)).status == expected(attack)[0]

        await all_of_them()  # what is made once, and caches
        descriptors, memory = state(service)
        for _ in range(2):
            await all_of_them()
        async with asyncio.timeout(20):
            while (now := state(service))[0] > descriptors + 2:
                await asyncio.sleep(0.1)
        print(f"{descriptors} descriptors and {memory:.0f} MB, then {now[0]} and {now[1]:.0f} MB")
        assert now[1] < memory + 16
    finally:
        service.kill()


def head(production: Production, *fields: str, api: str = "command") -> bytes:
    """The head of a good POST, without its end."""
    lines = (
        "POST /api/graphql HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Authorization: Bearer {production.tokens.admin()}",
        *fields,
    )
    return "\r\n".join(lines).encode() + b"\r\n"


class Connection:
    """Writes what it is told to."""

    def __init__(self, production: Production) -> None:
        self._production = production

    async def __aenter__(self) -> Connection:
        self.reader, self.writer = await asyncio.open_connection(
            "127.0.0.1", self._production.port("command"), ssl=self._production.context, server_hostname="localhost"
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def status(self) -> int:
        """Of the next answer; 0 when the connection ends without one."""
        line = await self.reader.readline()
        return int(line.split(b" ")[1]) if line else 0


async def test_a_body_that_streams_is_cut_at_the_limit(production: Production) -> None:
    """Chunk by chunk, with no length announced: the answer comes while more is still being sent."""
    before = production.commits()
    async with asyncio.timeout(20), Connection(production) as connection:
        connection.writer.write(head(production, "Transfer-Encoding: chunked") + b"\r\n")
        answered = asyncio.create_task(connection.status())
        written = 0
        try:
            while not answered.done() and written < 50_000_000:
                connection.writer.write(b"1000\r\n" + b" " * 4096 + b"\r\n")
                written += 4096
                await connection.writer.drain()
                await asyncio.sleep(0)
        except (ConnectionError, ssl.SSLError):
            pass
        assert await answered == 413
        assert written < 8_000_000  # what buffers hold at both ends
    assert production.commits() == before


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 70_000])
@pytest.mark.parametrize("chunked", [False, True])
async def test_the_limit_of_a_body_is_exact(production: Production, size: int, chunked: bool) -> None:
    query = json.dumps({"query": ANYTHING}).encode()
    body = query + b" " * (size - len(query))
    async with asyncio.timeout(20), Connection(production) as connection:
        if chunked:
            pieces = [body[at : at + 1000] for at in range(0, size, 1000)]
            sent = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
            connection.writer.write(head(production, "Transfer-Encoding: chunked") + b"\r\n" + sent)
        else:
            connection.writer.write(head(production, f"Content-Length: {size}") + b"\r\n" + body)
        assert await connection.status() == (200 if size <= 65_536 else 413)


@pytest.mark.parametrize(
    ("name", "count", "document", "code"),
    [
        ("aliases", 30, lambda count: "{" + " ".join(f"a{n}: health" for n in range(count)) + "}", "TOO_MANY_ALIASES"),
        ("root fields", 20, lambda count: "{" + " ".join(["health"] * count) + "}", "TOO_MANY_ROOT_FIELDS"),
        ("directives", 30, lambda count: "{ health " + "@skip(if: false) " * count + "}", "TOO_MANY_DIRECTIVES"),
        ("tokens", 1000, lambda count: "{" + "a " * (count - 2) + "}", "TOO_MANY_TOKENS"),
    ],
)  # fmt: skip
async def test_the_limits_of_documents_are_exact(
    production: Production, name: str, count: int, document: object, code: str
) -> None:
    """At the limit something else may be wrong; one more, and it is this."""
    assert callable(document)
    for many, over in ((count, False), (count + 1, True)):
        reply = await production.graphql("command", document(many), token=production.tokens.admin())
        assert (code_of(reply) == code) == over, (name, many, reply.body[:300])


@pytest.mark.parametrize("where", ["nothing", "request line", "head", "body", "chunks", "one byte at a time"])
async def test_who_is_slow_is_cut(production: Production, where: str) -> None:
    """The time for a head, and for a body, is 1.5 seconds here, and 2 for saying nothing at all; sending something now
    and then buys no more."""
    started = time.monotonic()
    async with asyncio.timeout(20), Connection(production) as connection:
        answered = asyncio.create_task(connection.status())
        match where:
            case "nothing":
                pass
            case "request line":
                connection.writer.write(b"POST /api/gra")
            case "head":
                connection.writer.write(head(production))
            case "body":
                connection.writer.write(head(production, "Content-Length: 30") + b"\r\n{")
            case "chunks":
                connection.writer.write(head(production, "Transfer-Encoding: chunked") + b"\r\n1\r\n{\r\n")
            case _:
                connection.writer.write(head(production))
        while not answered.done() and time.monotonic() - started < 10:
            if where == "one byte at a time":
                connection.writer.write(b"x")
            elif where == "chunks":
                connection.writer.write(b"1\r\n \r\n")
            await asyncio.sleep(0.2)
        status = await answered
    assert status in (408, 0), status
    assert time.monotonic() - started < 5
    if where in ("body", "chunks"):
        assert status == 408


async def test_many_who_are_slow_hold_up_nobody(production: Production) -> None:
    opened = [await Connection(production).__aenter__() for _ in range(60)]
    for connection in opened:
        connection.writer.write(head(production, "Content-Length: 1000") + b"\r\n{")
    started = time.monotonic()
    for _ in range(5):
        reply = await production.graphql("command", CREATE, {"input": PERSON}, token=production.tokens.admin())
        assert reply.status == 200
    assert time.monotonic() - started < 2
    async with asyncio.timeout(10):
        assert {await connection.status() for connection in opened} == {408}
    for connection in opened:
        connection.writer.close()


async def test_one_address_has_so_many_connections(tmp_path: Path) -> None:
    service = Production(tmp_path / "p", CONNECTIONS_ADDRESS=5, KEEP_ALIVE=30)
    service.service.start()
    try:
        await service.service.ready()
        kept = []
        for _ in range(5):
            client = service.client("query")
            assert (await client.graphql(ANYTHING, authorization=f"Bearer {service.tokens.user()}")).status == 200
            kept.append(client)
        with pytest.raises((ConnectionLost, OSError)):
            await service.graphql("query", ANYTHING, token=service.tokens.user())
        # Who is in goes on; and when one leaves, another comes in.
        assert (await kept[0].graphql(ANYTHING, authorization=f"Bearer {service.tokens.user()}")).status == 200
        kept[1].close()
        async with asyncio.timeout(10):
            while True:
                try:
                    assert (await service.graphql("query", ANYTHING, token=service.tokens.user())).status == 200
                    break
                except (ConnectionLost, OSError):
                    await asyncio.sleep(0.05)
    finally:
        service.kill()
