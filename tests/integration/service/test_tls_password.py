"""Integration: a key whose password was rotated is opened with the new one, without a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from kiseki.application.system import SystemClock
from kiseki.security.secrets.reading import SecretRefused
from kiseki.security.secrets.source import SecretSource
from kiseki.security.tls import ReloadingTls
from kiseki.service.limits import client_addresses
from kiseki.service.settings import Settings
from kiseki.service.transport import open_transport
from tests.integration.service.transport_parts import Audit
from tests.servers.certificates import Authority, replace
from tests.unit.security.fakes import FakeClock

FIRST, SECOND = b"first-password-of-the-key", b"second-password-of-the-key"


class Rotating:
    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        self.pair = self.authority.issue(password=FIRST)
        self.file = folder / "password"
        replace(self.file, FIRST)
        self.clock = FakeClock()
        self.secrets = SecretSource(clock=self.clock, refresh=300)
        self.audit = Audit()

    async def open(self) -> ReloadingTls:
        settings = Settings(
            tls_certificate=self.pair.certificate, tls_key=self.pair.key, tls_key_password=f"file://{self.file}"
        )
        transport = await open_transport(
            settings,
            secrets=self.secrets,
            addresses=client_addresses(settings),
            clock=SystemClock(),
            auditor=self.audit,
        )
        assert transport.tls is not None
        return transport.tls


async def test_a_rotated_password_is_used(tmp_path: Path) -> None:
    rotating = Rotating(tmp_path)
    tls = await rotating.open()
    before = tls.loaded.fingerprint
    rotating.authority.issue(password=SECOND)
    rotating.clock.advance(2)
    # The key came first: the pair before stays, and nothing is lost.
    assert not await tls.look()
    assert tls.problem is not None
    assert tls.loaded.fingerprint == before
    replace(rotating.file, SECOND)
    rotating.clock.advance(2)
    assert await tls.look()
    assert tls.loaded.fingerprint != before
    await rotating.secrets.close()


async def test_a_password_that_can_not_be_read_again_leaves_the_one_that_is_known(tmp_path: Path) -> None:
    rotating = Rotating(tmp_path)
    tls = await rotating.open()
    before = tls.loaded.fingerprint
    rotating.file.unlink()
    rotating.authority.issue(password=FIRST)
    rotating.clock.advance(2)
    assert await tls.look()
    assert tls.loaded.fingerprint != before
    await rotating.secrets.close()


async def test_a_password_that_was_never_there_is_refused_at_the_start(tmp_path: Path) -> None:
    rotating = Rotating(tmp_path)
    rotating.file.unlink()
    with pytest.raises(SecretRefused):
        await rotating.open()
    await rotating.secrets.close()
