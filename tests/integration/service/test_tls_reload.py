"""Integration: the certificate is exchanged while requests run, and a broken one is never taken for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from pathlib import Path

import pytest

from kiseki.application.system import SystemClock
from kiseki.security.tls import ReloadingTls, TlsFiles
from tests.integration.service.transport_parts import GOOD, Audit, Service, running
from tests.servers.certificates import Authority, Pair, replace

INTERVAL = 0.02


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def pair(authority: Authority) -> Pair:
    return authority.issue()


@pytest.fixture
def audit() -> Audit:
    return Audit()


@pytest.fixture
def tls(pair: Pair, audit: Audit) -> ReloadingTls:
    files = TlsFiles(certificate=pair.certificate, key=pair.key)
    return ReloadingTls(files, clock=SystemClock(), auditor=audit, interval=INTERVAL)


async def serial(service: Service, client: ssl.SSLContext) -> str:
    async with service.connection(client) as connection:
        connection.send(GOOD)
        assert (await connection.response()).status == 200
        return str((connection.tls.getpeercert() or {})["serialNumber"])


async def test_a_new_certificate_is_used_without_a_restart_while_requests_run(
    authority: Authority, tls: ReloadingTls, audit: Audit
) -> None:
    client = authority.client()
    answered = 0
    async with running(tls=tls) as service:
        ends = asyncio.Event()

        async def load() -> None:
            nonlocal answered
            while not ends.is_set():
                await serial(service, client)
                answered += 1

        watching = asyncio.create_task(tls.watch_forever())
        loads = [asyncio.create_task(load()) for _ in range(4)]
        async with service.connection(client) as kept:
            kept.send(GOOD)
            assert (await kept.response()).status == 200
            first = await serial(service, client)
            authority.issue()
            async with asyncio.timeout(10):
                while await serial(service, client) == first:
                    await asyncio.sleep(INTERVAL)
            # The connection that was open goes on with what it began with.
            kept.send(GOOD)
            assert (await kept.response()).status == 200
        ends.set()
        await asyncio.gather(*loads)
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    assert answered > 4
    assert [event.outcome for event in audit.events if event.kind == "certificate.reloaded"] == ["done"]


async def test_a_broken_pair_keeps_the_old_one_until_it_is_mended(
    authority: Authority, pair: Pair, tls: ReloadingTls, audit: Audit, caplog: pytest.LogCaptureFixture
) -> None:
    client = authority.client()
    async with running(tls=tls) as service:
        first = await serial(service, client)
        for broken in (b"", b"no certificate", pair.certificate.read_bytes()[:300]):
            replace(pair.certificate, broken)
            for _ in range(5):
                assert not await tls.look()
            assert tls.problem is not None
            assert await serial(service, client) == first
        outcomes = [event.outcome for event in audit.events]
        # Each broken pair is told once, however often it is looked at.
        assert outcomes == ["failed"] * 3
        authority.issue()
        assert await tls.look()
        assert await serial(service, client) != first
        assert tls.problem is None
        assert [event.outcome for event in audit.events] == ["failed"] * 3 + ["done"]
    assert "PRIVATE KEY" not in caplog.text
    assert "Traceback" not in caplog.text


async def test_a_key_of_another_certificate_is_not_used(authority: Authority, pair: Pair, tls: ReloadingTls) -> None:
    other = authority.issue("other")
    replace(pair.key, other.key.read_bytes())
    assert not await tls.look()
    assert tls.problem is not None
    assert "does not belong" in tls.problem
    # The second of the two files makes it whole.
    replace(pair.certificate, other.certificate.read_bytes())
    assert await tls.look()
    assert tls.problem is None


async def test_between_two_files_nothing_is_told(
    authority: Authority, pair: Pair, tls: ReloadingTls, audit: Audit
) -> None:
    other = authority.issue("other")
    replace(pair.certificate, other.certificate.read_bytes())
    assert not await tls.look()
    replace(pair.key, other.key.read_bytes())
    assert await tls.look()
    assert [event.outcome for event in audit.events] == ["done"]


async def test_files_that_are_gone_keep_the_pair(
    authority: Authority, pair: Pair, tls: ReloadingTls, audit: Audit
) -> None:
    before = tls.context
    pair.key.unlink()
    for _ in range(5):
        assert not await tls.look()
    assert tls.context is before
    assert tls.problem is not None
    assert len(audit.events) == 1
    authority.issue()
    assert await tls.look()
    assert tls.context is not before


async def test_the_old_files_back_are_no_problem(pair: Pair, tls: ReloadingTls) -> None:
    kept = pair.certificate.with_suffix(".kept")
    os.link(pair.certificate, kept)
    replace(pair.certificate, b"broken")
    await tls.look()
    assert tls.problem is not None
    kept.rename(pair.certificate)
    assert not await tls.look()
    assert tls.problem is None


async def test_links_as_kubernetes_makes_them_are_followed(tmp_path: Path, audit: Audit) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    Authority(first).issue("tls")
    Authority(second).issue("tls")
    data = tmp_path / "data"
    data.symlink_to(first)
    tls = ReloadingTls(TlsFiles(certificate=data / "tls.pem", key=data / "tls.key"), clock=SystemClock())
    before = tls.loaded.fingerprint
    fresh = tmp_path / "fresh"
    fresh.symlink_to(second)
    fresh.rename(data)
    assert await tls.look()
    assert tls.loaded.fingerprint != before


async def test_another_trust_store_is_taken_up(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    newer = Authority(tmp_path, "Newer")
    pair = authority.issue()
    store = tmp_path / "clients.pem"
    replace(store, authority.trust.read_bytes())
    tls = ReloadingTls(
        TlsFiles(certificate=pair.certificate, key=pair.key, client_ca=store),
        clock=SystemClock(),
    )
    known = newer.issue("client", usage=None)
    async with running(tls=tls) as service:
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            await service.ask(GOOD, authority.client(known))
        replace(store, authority.trust.read_bytes() + newer.trust.read_bytes())
        assert await tls.look()
        assert (await service.ask(GOOD, authority.client(known))).status == 200
