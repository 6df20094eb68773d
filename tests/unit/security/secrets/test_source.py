"""Secrets are remembered, read again after a rotation, and outlive an outage of where they are."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kiseki.kernel.errors import KisekiError, Unavailable
from kiseki.kernel.ports import AuditEvent
from kiseki.security.secrets.passwords import SecretPassword
from kiseki.security.secrets.reading import SECRET_BYTES, SecretRefused, SecretUnavailable
from kiseki.security.secrets.reference import SecretReference, SecretReferenceInvalid
from kiseki.security.secrets.secret import Secret
from kiseki.security.secrets.source import SecretSource
from tests.unit.security.fakes import FakeClock

DB = "vault://kv/db#password"


class Reader:
    """Secrets by label; counts, and can be made to fail or hang."""

    def __init__(self, **secrets: str) -> None:
        self.now = "first"
        self.problem: Exception | None = None
        self.hold: asyncio.Event | None = None
        self.reads = 0
        self.closed = 0

    async def read(self, reference: SecretReference) -> str:
        self.reads += 1
        if self.hold is not None:
            await self.hold.wait()
        if self.problem is not None:
            raise self.problem
        return self.now

    async def close(self) -> None:
        self.closed += 1


class Auditing:
    def __init__(self) -> None:
        self.events: list[AuditEvent] = []

    def note(self, event: AuditEvent) -> None:
        self.events.append(event)

    async def record(self, event: AuditEvent) -> None:
        self.events.append(event)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def make(clock: FakeClock, reader: Reader) -> Callable[..., SecretSource]:
    return lambda **options: SecretSource(clock=clock, readers={"vault": reader}, **{"refresh": 60.0, **options})


async def test_a_secret_is_read_once_and_again_when_it_is_due(
    make: Callable[..., SecretSource], clock: FakeClock, reader: Reader
) -> None:
    source = make()
    assert (await source.get(DB)).reveal() == "first"
    reader.now = "second"
    clock.advance(59.9)
    assert (await source.get(DB)).reveal() == "first"
    assert reader.reads == 1
    clock.advance(0.1)
    assert (await source.get(DB)).reveal() == "second"
    assert reader.reads == 2


async def test_a_plain_value_is_itself_and_remembered_nowhere(make: Callable[..., SecretSource]) -> None:
    heard: list[str] = []
    source = make(on_secret=heard.append)
    assert (await source.get("hunter2hunter2")).reveal() == "hunter2hunter2"
    assert (await source.renew("hunter2hunter2")).reveal() == "hunter2hunter2"
    assert heard == ["hunter2hunter2"] * 2
    assert "hunter2" not in repr(vars(source))


async def test_masking_hears_of_every_value_before_anybody_uses_it(
    make: Callable[..., SecretSource], clock: FakeClock, reader: Reader
) -> None:
    heard: list[str] = []
    source = make(on_secret=heard.append)
    await source.get(DB)
    reader.now = "second"
    await source.get(DB)
    clock.advance(100)
    await source.get(DB)
    assert heard == ["first", "second"]


async def test_renewing_reads_at_once_but_not_more_than_once_a_second(
    make: Callable[..., SecretSource], clock: FakeClock, reader: Reader
) -> None:
    source = make()
    await source.get(DB)
    reader.now = "second"
    assert (await source.renew(DB)).reveal() == "first", "it was read this very second"
    clock.advance(1)
    assert (await source.renew(DB)).reveal() == "second"
    for _ in range(1_000):
        await source.renew(DB)
    assert reader.reads == 2


async def test_concurrent_readers_share_one_reading_and_none_takes_it_along(
    make: Callable[..., SecretSource], reader: Reader
) -> None:
    source = make()
    reader.hold = asyncio.Event()
    first, *others = [asyncio.create_task(source.get(DB)) for _ in range(100)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()
    reader.hold.set()
    assert [secret.reveal() for secret in await asyncio.gather(*others)] == ["first"] * 99
    assert reader.reads == 1


@pytest.mark.parametrize(
    "problem", [SecretUnavailable("down"), SecretRefused("gone"), Unavailable("net"), KisekiError("other")]
)
async def test_what_is_known_outlives_an_outage(
    make: Callable[..., SecretSource],
    clock: FakeClock,
    reader: Reader,
    problem: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = make()
    await source.get(DB)
    reader.problem = problem
    clock.advance(61)
    for _ in range(50):
        assert (await source.get(DB)).reveal() == "first"
    assert reader.reads == 2, "and is not asked for at every use"
    assert "stays in use" in caplog.text
    assert "first" not in caplog.text
    reader.problem, reader.now = None, "second"
    clock.advance(10)
    assert (await source.get(DB)).reveal() == "second", "soon after it is over"


async def test_the_first_reading_fails_closed(make: Callable[..., SecretSource], reader: Reader) -> None:
    source = make()
    for problem, kind in [(SecretUnavailable("down"), SecretUnavailable), (KisekiError("no"), SecretRefused)]:
        reader.problem = problem
        for ask in (source.get, source.renew):
            with pytest.raises(kind):
                await ask(DB)
    reader.problem = None
    assert (await source.get(DB)).reveal() == "first", "nothing of the failures is remembered"


async def test_a_source_that_hangs_is_not_waited_for(
    make: Callable[..., SecretSource], clock: FakeClock, reader: Reader
) -> None:
    source = make(patience=0.05)
    reader.hold = asyncio.Event()
    async with asyncio.timeout(5):
        with pytest.raises(SecretUnavailable, match="no answer"):
            await source.get(DB)
        reader.hold.set()
        await source.get(DB)
        reader.hold = asyncio.Event()
        clock.advance(61)
        assert (await source.get(DB)).reveal() == "first"


async def test_a_secret_without_end_is_refused(make: Callable[..., SecretSource], reader: Reader) -> None:
    reader.now = "x" * (SECRET_BYTES + 1)
    with pytest.raises(SecretRefused, match="more than"):
        await make().get(DB)


async def test_rotations_are_audited_without_the_secret(
    make: Callable[..., SecretSource], clock: FakeClock, reader: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    source, auditing = make(), Auditing()
    source.audit_to(auditing)
    await source.get(DB)
    clock.advance(61)
    await source.get(DB)
    assert auditing.events == [], "nothing changed"
    reader.now = "second-secret"
    clock.advance(61)
    await source.get(DB)
    reader.problem = SecretRefused("gone")
    clock.advance(61)
    await source.get(DB)
    assert [(each.kind, each.outcome, each.target, each.code) for each in auditing.events] == [
        ("secret.rotated", "done", DB, None),
        ("secret.rotated", "failed", DB, "SECRET_REFUSED"),
    ]
    assert "second-secret" not in repr(auditing.events) + caplog.text


async def test_listeners_hear_of_a_rotation_once_and_one_that_fails_harms_nobody(
    make: Callable[..., SecretSource], clock: FakeClock, reader: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    source = make()
    heard: list[str] = []

    def fail(secret: Secret) -> None:
        raise ValueError(secret.reveal())

    source.on_change(DB, fail)
    source.on_change(DB, lambda secret: heard.append(secret.reveal()))
    await source.get(DB)
    reader.now = "second-secret"
    clock.advance(61)
    await source.refresh_due()
    await source.refresh_due()
    assert heard == ["second-secret"]
    assert "second-secret" not in caplog.text


async def test_watching_reads_what_is_due_without_anybody_asking(
    make: Callable[..., SecretSource], clock: FakeClock, reader: Reader
) -> None:
    source = make()
    await source.get(DB)
    reader.now = "second"
    heard = asyncio.Event()
    source.on_change(DB, lambda secret: heard.set())
    clock.advance(61)
    watching = asyncio.create_task(source.watch())
    async with asyncio.timeout(5):
        await heard.wait()
    watching.cancel()


async def test_kinds_that_nobody_reads_are_refused_with_what_is_missing(clock: FakeClock) -> None:
    source = SecretSource(clock=clock)
    with pytest.raises(SecretRefused, match="vault_address"):
        await source.get(DB)
    with pytest.raises(SecretRefused, match="kiseki\\[aws\\]"):
        await source.get("aws-sm://x")
    with pytest.raises(SecretReferenceInvalid):
        await source.get("valut://kv/db#x")


async def test_files_are_read_again(clock: FakeClock, tmp_path: Path) -> None:
    source = SecretSource(clock=clock, refresh=30)
    path = tmp_path / "password"
    path.write_text("first\n")
    path.chmod(0o600)
    assert (await source.get(f"file://{path}")).reveal() == "first"
    replaced = tmp_path / "new"
    replaced.write_text("second\n")
    replaced.chmod(0o600)
    replaced.rename(path)
    clock.advance(31)
    assert (await source.get(f"file://{path}")).reveal() == "second"
    path.chmod(0o644)
    clock.advance(31)
    assert (await source.get(f"file://{path}")).reveal() == "second", "what became unsafe is not believed any more"


async def test_closing_closes_readers_and_what_runs(make: Callable[..., SecretSource], reader: Reader) -> None:
    source = make()
    reader.hold = asyncio.Event()
    waiting = asyncio.create_task(source.get(DB))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await source.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert reader.closed == 1


async def test_a_password_of_a_database_is_asked_for_each_time_and_never_shown(
    make: Callable[..., SecretSource], clock: FakeClock, reader: Reader
) -> None:
    password: Any = SecretPassword(make(), DB)
    assert await password.password() == "first"
    reader.now = "second"
    clock.advance(2)
    assert await password.password() == "first"
    assert await password.renewed() == "second"
    assert "second" not in repr(password)
    with pytest.raises(SecretReferenceInvalid):
        SecretPassword(make(), "valut://kv/db#x")
