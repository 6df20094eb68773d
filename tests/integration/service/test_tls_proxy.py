"""Integration: where a proxy ends TLS, nobody gets around it."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.servers.production import Production


def own_address() -> str | None:
    """An address of this machine that others see; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("203.0.113.1", 9))
        except OSError:
            return None
        address: str = probe.getsockname()[0]
    return None if address.startswith("127.") else address


ADDRESS = own_address()
pytestmark = pytest.mark.skipif(ADDRESS is None, reason="this machine has no address but its own loopback")


async def ask(host: str, port: int, path: str, *fields: str) -> tuple[int, dict[str, Any]]:
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            head = f"{'GET' if 'health' in path else 'POST'} {path} HTTP/1.1\r\nHost: localhost\r\n"
            writer.write("".join((head, *fields, "Content-Length: 0\r\nConnection: close\r\n\r\n")).encode())
            received = await reader.read()
        finally:
            writer.close()
    top, _, body = received.partition(b"\r\n\r\n")
    return int(top.split()[1]), json.loads(body)


def behind(folder: Path, proxies: str) -> Production:
    return Production(
        folder,
        HOST="0.0.0.0",
        MANAGEMENT_HOST="127.0.0.1",
        TLS_CERTIFICATE=None,
        TLS_KEY=None,
        TLS_PROXY="true",
        TRUSTED_PROXIES=proxies,
    )


def test_whoever_is_no_proxy_is_refused_and_audited(tmp_path: Path) -> None:
    assert ADDRESS is not None
    with behind(tmp_path / "p", "10.99.0.0/16") as service:
        for api in ("command", "query"):
            port = service.port(api)
            for path in ("/api/graphql", "/api/graphql/schema", "/nowhere"):
                for fields in ((), ("X-Forwarded-For: 10.99.0.1\r\n",), ("X-Forwarded-Proto: https\r\n",)):
                    status, body = asyncio.run(ask(ADDRESS, port, path, *fields))
                    assert (status, body["code"]) == (403, "FORBIDDEN_PEER")
            assert asyncio.run(ask(ADDRESS, port, "/api/health"))[0] == 200
            # This machine's own may ask: they get as far as the token.
            assert asyncio.run(ask("127.0.0.1", port, "/api/graphql"))[0] == 401
        record = asyncio.run(service.recorded(lambda one: one.get("code") == "FORBIDDEN_PEER"))
        assert (record["kind"], record["outcome"], record["address"]) == ("request.refused", "refused", ADDRESS)


def test_a_proxy_is_answered(tmp_path: Path) -> None:
    assert ADDRESS is not None
    with behind(tmp_path / "p", f"{ADDRESS}/32") as service:
        assert asyncio.run(ask(ADDRESS, service.port("query"), "/api/graphql"))[0] == 401
