"""Rate limits that processes share through a real server: exact together, and what happens when it is not there."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import ssl
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from kiseki.security.limits import redis_windows
from kiseki.security.limits.memory import MemoryLimiter
from kiseki.security.limits.redis_address import RedisAddress
from kiseki.security.limits.redis_windows import RedisWindows
from kiseki.security.limits.shared import SharedLimiter
from kiseki.security.limits.shared_store import SharedWindows, SharedWindowsUnavailable
from kiseki.security.limits.verdict import SLOTS, LimitPolicy
from kiseki.security.secrets.source import SecretSource
from kiseki.service.limits import rate_limits
from kiseki.service.settings import Settings
from tests.servers.redis import NoRedis, RedisServer
from tests.unit.security.fakes import FakeClock
from tests.unit.security.limits.limit_parts import Admissions, ListAuditor

POLICY = LimitPolicy("subject", 50)
SUBJECT = "hanako@example.com"


class RealClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


def digest(scope: str, value: str) -> str:
    return hashlib.blake2b(f"{scope}|{value}".encode(), key=b"a key of the test").hexdigest()


@pytest.fixture(scope="module")
def running() -> Iterator[RedisServer]:
    try:
        server = RedisServer()
        server.__enter__()
    except NoRedis as problem:
        pytest.skip(f"Redis tests need a server: {problem}")
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    """The server, up and empty."""
    with running.client() as client:
        client.flushall()
        client.script_flush()
    return running


class Process:
    """What one process of a service has."""

    def __init__(
        self, url: str, *, policy: LimitPolicy = POLICY, processes: int | None = None, ca_file: str | None = None
    ) -> None:
        self.asked = 0
        self.auditor = ListAuditor()
        self.store = RedisWindows(RedisAddress(url, ca_file=ca_file), digest=digest)
        # A loaded machine may be slow to answer; the tests that are about time say so.
        self.shared = SharedWindows(self.store, clock=RealClock(), auditor=self.auditor, budget=2.0)
        self.limiter = SharedLimiter(policy, shared=self.shared, clock=RealClock(), processes=processes)

    def hurry(self, budget: float) -> None:
        self.shared._budget = budget

    async def ask(self) -> None:
        """One request of somebody new: who is over the limit here would not ask the server."""
        self.asked += 1
        await self.limiter.take(f"new {self.asked}")

    async def flood(self, requests: int, key: str = SUBJECT, cost: int = 1) -> int:
        """How many of so many requests at once are let in."""
        verdicts = await asyncio.gather(*(self.limiter.take(key, cost) for _ in range(requests)))
        return sum(one.allowed for one in verdicts)


@asynccontextmanager
async def processes(
    server: RedisServer, count: int, *, policy: LimitPolicy = POLICY, processes: int | None = None
) -> AsyncIterator[list[Process]]:
    made = [Process(server.url, policy=policy, processes=processes) for _ in range(count)]
    try:
        yield made
    finally:
        for process in made:
            await process.shared.close()


async def eventually(condition: Callable[[], bool], act: Callable[[], Awaitable[None]]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await act()
            await asyncio.sleep(0.01)


# The promise


async def test_processes_share_one_limit_exactly(server: RedisServer) -> None:
    async with processes(server, 3) as three:
        let_in = await asyncio.gather(*(one.flood(100) for one in three))
        assert sum(let_in) == 50
        assert all(one.shared.available for one in three)
        assert sum([await one.flood(5) for one in three]) == 0
        assert await three[0].flood(5, "somebody else") == 5


async def test_work_is_shared_exactly_too(server: RedisServer) -> None:
    async with processes(server, 2) as two:
        let_in = await asyncio.gather(*(one.flood(40, cost=7) for one in two))
        assert sum(let_in) == 7
        assert await two[0].flood(10) + await two[1].flood(10) == 1


async def test_by_the_clock_of_the_server_who_waits_as_told_is_let_in(server: RedisServer) -> None:
    async with processes(server, 2, policy=LimitPolicy("subject", 5, 1)) as two:
        began = time.monotonic()
        assert (await two[0].limiter.take("a", 5)).allowed
        verdict = await two[1].limiter.take("a", 5)
        if not verdict.allowed:
            await asyncio.sleep(verdict.retry_after)
            verdict = await two[1].limiter.take("a", 5)
        assert verdict.allowed
        assert time.monotonic() - began >= 1


def run_script(client: Redis, key: str, limit: int, cost: int, microseconds: int) -> list[int]:
    """The script, told the time instead of asking the server for it."""
    script = redis_windows._SCRIPT
    assert script.count("redis.call('TIME')") == 1
    told = script.replace("redis.call('TIME')", "{ARGV[5], ARGV[6]}")
    seconds, rest = divmod(microseconds, 1_000_000)
    answer = client.eval(told, 1, key, limit, cost, 60_000_000 // SLOTS, SLOTS, seconds, rest)
    assert isinstance(answer, list)
    return answer


_STEPS = st.integers(0, 40) | st.integers(0, 600) | st.sampled_from([476, 477, 479, 480, 481, 483, 484, 485])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit=st.integers(1, 12), requests=st.lists(st.tuples(_STEPS, st.integers(0, 13)), max_size=50))
def test_it_is_the_algorithm_that_is_used_in_memory(
    server: RedisServer, limit: int, requests: list[tuple[int, int]]
) -> None:
    clock = FakeClock()
    memory = MemoryLimiter(LimitPolicy("subject", limit), clock=clock)
    let_in = Admissions(limit)
    with server.client() as client:
        client.flushall()
        for eighths, cost in requests:
            clock.advance(eighths / 8)
            now = clock.monotonic()
            allowed, used, reset, wait = run_script(
                client, "a", limit, cost, int(now * 1_000_000) + 1_800_000_000_000_000
            )
            expected = memory.take_now("a", cost)
            assert bool(allowed) == expected.allowed
            assert limit - used == expected.remaining
            assert reset == expected.reset_after * 1_000_000
            assert max(1, -(-wait // 1_000_000)) == expected.retry_after or allowed
            if allowed:
                let_in.let_in(now, cost)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    limit=st.integers(1, 12),
    requests=st.lists(st.tuples(_STEPS, st.integers(1, 6), st.sampled_from([0, 0, 0, 3, 500, 100_000])), max_size=50),
)
def test_no_window_has_more_when_the_clock_of_the_server_is_set_back(
    server: RedisServer, limit: int, requests: list[tuple[int, int, int]]
) -> None:
    real, told = 0, 1_800_000_000 * 8
    let_in = Admissions(limit)
    with server.client() as client:
        client.flushall()
        for eighths, cost, back in requests:
            real += eighths
            told += eighths - back
            if run_script(client, "a", limit, cost, told * 125_000)[0]:
                let_in.let_in(real / 8, cost)
        # Nobody is kept out for as long as the clock was set back.
        for _ in range(2):
            told += 61 * 8
            allowed = run_script(client, "a", limit, limit, told * 125_000)[0]
        assert allowed


# What the server holds


async def test_nothing_in_the_server_says_who_asked_and_all_of_it_ends(server: RedisServer) -> None:
    async with processes(server, 1) as (one,):
        await one.flood(60)
        with server.client() as client:
            (key,) = client.scan_iter()
            assert key == f"kiseki:limit:1:subject:60:{digest('limit/subject', SUBJECT)[:32]}".encode()
            value = client.get(key)
            assert isinstance(value, bytes)
            assert len(value) <= 12 * (SLOTS + 1)
            assert b"hanako" not in key + value
            assert 60_000 < client.pttl(key) <= 62_500


async def test_what_is_over_the_limit_here_does_not_reach_the_server(server: RedisServer) -> None:
    async with processes(server, 2) as (one, other):
        await one.flood(60)
        assert not (await other.limiter.take(SUBJECT)).allowed
        with server.client() as client:
            client.config_resetstat()
            assert await one.flood(200) == await other.flood(200) == 0
            assert "cmdstat_evalsha" not in client.info("commandstats")


# Without the server


async def test_without_a_server_the_local_limit_holds_and_one_event_is_audited(server: RedisServer) -> None:
    with RedisServer() as gone:
        gone.halt()
        async with processes(gone, 2, processes=2) as (one, other):
            assert (await one.flood(100), await other.flood(100)) == (25, 25)
            assert one.auditor.kinds == other.auditor.kinds == ["limit.shared_unavailable"]
            assert one.auditor.events[0].code == "UNREACHABLE"


async def test_a_frozen_server_holds_up_nobody_for_long_and_is_used_again_when_it_goes_on() -> None:
    with RedisServer() as frozen:
        async with processes(frozen, 1) as (one,):
            assert await one.flood(5) == 5
            one.hurry(0.05)
            frozen.freeze()
            try:
                await eventually(lambda: not one.shared.asks(), one.ask)
                assert one.auditor.events[0].code in {"SLOW", "UNREACHABLE"}
                began = time.monotonic()
                assert await one.flood(1_000, "third") == 50
                assert time.monotonic() - began < 1  # 1,000 waits of 50 ms would not fit
            finally:
                frozen.thaw()
            one.hurry(2.0)
            await eventually(lambda: one.shared.available, one.ask)
            assert one.auditor.kinds[-1] == "limit.shared_available"
            assert await one.flood(100) == 45


async def test_a_server_that_starts_again_is_used_again_with_its_scripts_lost() -> None:
    with RedisServer() as server:
        async with processes(server, 2) as (one, other):
            assert await one.flood(5) == 5
            server.halt()
            await one.flood(1, "other")
            assert not one.shared.available
            server.launch()
            await eventually(lambda: one.shared.available, one.ask)
            with server.client() as client:
                assert client.script_exists(redis_windows._DIGEST) == [True]
            # What the server forgot this process remembers: its own five.
            assert await one.flood(100) == 45
            assert await other.flood(100) == 5


async def test_lost_scripts_are_sent_again_and_nothing_is_counted_twice(server: RedisServer) -> None:
    async with processes(server, 2) as (one, other):
        with server.client() as client:
            for _ in range(5):
                assert (await one.limiter.take(SUBJECT)).allowed
                client.script_flush()
        assert (await other.limiter.take(SUBJECT)).remaining == 44
        assert one.auditor.kinds == []


async def test_connections_that_the_server_cut_are_replaced(server: RedisServer) -> None:
    async with processes(server, 1) as (one,):
        await one.flood(20)
        with server.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)
        await eventually(lambda: one.shared.available, one.ask)
        assert await one.flood(100) <= 30


async def test_a_server_that_is_full_or_read_only_leaves_the_local_limit(server: RedisServer) -> None:
    async with processes(server, 1) as (one,):
        with server.client() as client:
            client.config_set("maxmemory", "1")
            try:
                assert await one.flood(100) == 50
            finally:
                client.config_set("maxmemory", "0")
        assert [event.code for event in one.auditor.events] == ["FULL"]


@pytest.mark.parametrize("damage", ["text", "list", "short"])
async def test_a_damaged_value_leaves_the_local_limit_for_its_key(server: RedisServer, damage: str) -> None:
    async with processes(server, 1) as (one,):
        key = f"kiseki:limit:1:subject:60:{digest('limit/subject', SUBJECT)[:32]}"
        with server.client() as client:
            if damage == "list":
                client.rpush(key, "a")
            else:
                client.set(key, "no limit at all" if damage == "text" else "abc")
        assert await one.flood(100) == 50
        assert one.auditor.events[0].code == "REFUSED"


@pytest.mark.parametrize("who", ["", ":wrong-password-1@", "nobody:wrong-password-1@"])
async def test_a_wrong_password_is_audited_and_never_shown(
    server: RedisServer, who: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = server.url.replace(f":{server.password}@", who)
    with caplog.at_level(logging.DEBUG):
        one = Process(url)
        assert await one.flood(100) == 50
        assert one.auditor.events[0].code == "DENIED"
        with pytest.raises(SharedWindowsUnavailable) as problem:
            await one.store.take(POLICY, SUBJECT, 1)
        await one.shared.close()
    told = f"{caplog.text}{problem.value}{problem.value!r}{one.auditor.events}"
    assert "wrong-password-1" not in told
    assert "nobody" not in told
    assert SUBJECT not in told


async def test_what_answers_but_is_no_redis_leaves_the_local_limit() -> None:
    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(web, "127.0.0.1", 0) as other:
        one = Process(f"redis://127.0.0.1:{other.sockets[0].getsockname()[1]}")
        assert await one.flood(100) == 50
        assert one.auditor.kinds == ["limit.shared_unavailable"]
        await one.shared.close()


# TLS


class Certificates:
    """An authority and a certificate for 127.0.0.1, and a stranger's."""

    def __init__(self, directory: Path) -> None:
        self.ca, key, authority = self._authority(directory / "ca.pem", "authority")
        self.other_ca, _, _ = self._authority(directory / "other.pem", "stranger")
        self.chains = {
            name: self._leaf(directory / f"{name}.pem", alternative, key, authority)
            for name, alternative in (
                ("right", x509.IPAddress(ipaddress.ip_address("127.0.0.1"))),
                ("elsewhere", x509.DNSName("redis.example")),
            )
        }

    @staticmethod
    def _authority(path: Path, name: str) -> tuple[Path, ec.EllipticCurvePrivateKey, x509.Name]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = Certificates._builder(subject, subject, key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        path.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return path, key, subject

    @staticmethod
    def _leaf(path: Path, name: x509.GeneralName, ca_key: ec.EllipticCurvePrivateKey, issuer: x509.Name) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis")])
        made = Certificates._builder(subject, issuer, key).add_extension(
            x509.SubjectAlternativeName([name]), critical=False
        )
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + made.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )
        return path

    @staticmethod
    def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
        )


@asynccontextmanager
async def tls_front(server: RedisServer, chain: Path, newest: ssl.TLSVersion) -> AsyncIterator[int]:
    """TLS in front of the server, which has none of its own here. Gives the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # old versions are meant
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = newest

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while received := await reader.read(65_536):
                writer.write(received)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(pump(reader, behind[1]), pump(behind[0], writer))

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as front:
        yield front.sockets[0].getsockname()[1]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


async def test_a_server_with_a_certificate_of_the_authority_is_used(
    server: RedisServer, certificates: Certificates
) -> None:
    async with tls_front(server, certificates.chains["right"], ssl.TLSVersion.TLSv1_3) as port:
        url = f"rediss://:{server.password}@127.0.0.1:{port}/0"
        one, other = (Process(url, ca_file=str(certificates.ca)) for _ in range(2))
        assert await one.flood(40) + await other.flood(40) == 50
        assert one.auditor.kinds == other.auditor.kinds == []
        await one.shared.close()
        await other.shared.close()


@pytest.mark.parametrize(
    ("chain", "authority", "newest"),
    [
        ("right", "other_ca", ssl.TLSVersion.TLSv1_3),
        ("right", None, ssl.TLSVersion.TLSv1_3),
        ("elsewhere", "ca", ssl.TLSVersion.TLSv1_3),
        ("right", "ca", ssl.TLSVersion.TLSv1_1),
    ],
    ids=["stranger's authority", "machine's authorities", "another name", "old TLS"],
)
async def test_a_server_that_can_not_prove_who_it_is_gets_no_password(
    server: RedisServer, certificates: Certificates, chain: str, authority: str | None, newest: ssl.TLSVersion
) -> None:
    with server.client() as client:
        client.config_resetstat()
        async with tls_front(server, certificates.chains[chain], newest) as port:
            ca_file = None if authority is None else str(getattr(certificates, authority))
            one = Process(f"rediss://:{server.password}@127.0.0.1:{port}/0", ca_file=ca_file)
            assert await one.flood(60) == 50
            await one.shared.close()
        # A handshake that the server breaks off itself looks like a connection that was cut.
        assert [event.code for event in one.auditor.events] == [
            "TLS" if newest > ssl.TLSVersion.TLSv1_1 else "UNREACHABLE"
        ]
        assert "cmdstat_auth" not in client.info("commandstats")


async def test_a_server_without_tls_is_not_used_by_an_address_with_it(server: RedisServer) -> None:
    one = Process(server.url.replace("redis://", "rediss://"))
    assert await one.flood(60) == 50
    assert one.auditor.kinds == ["limit.shared_unavailable"]
    await one.shared.close()


# Passwords that are rotated


class Rotating:
    """The password of the server and the secret that says it, changed one after the other, as operators do."""

    def __init__(self, server: RedisServer, folder: Path) -> None:
        self.server = server
        self.file = folder / "redis"
        self.before = server.password

    def write(self, url: str) -> None:
        fresh = self.file.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text(url)
        fresh.rename(self.file)

    def rotate(self, password: str) -> None:
        """In the server; connections that are open stay, as in Redis."""
        with self.server.client() as client:
            client.config_set("requirepass", password)
        self.server.url = self.server.url.replace(self.server.password, password)
        self.server.password = password

    def cut(self) -> None:
        with self.server.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)


@pytest.fixture
def rotating(server: RedisServer, tmp_path: Path) -> Iterator[Rotating]:
    made = Rotating(server, tmp_path)
    made.write(server.url)
    yield made
    made.rotate(made.before)


@asynccontextmanager
async def wired(
    rotating: Rotating, clock: FakeClock, auditor: ListAuditor, **given: str
) -> AsyncIterator[tuple[SharedWindows, SecretSource]]:
    """As the settings wire it."""
    secrets = SecretSource(clock=clock, refresh=300)
    limits = await rate_limits(
        Settings(rate_store=f"file://{rotating.file}", **given),  # type: ignore[arg-type]
        secrets=secrets,
        clock=RealClock(),
        auditor=auditor,
        digest=digest,
    )
    assert limits._shared is not None
    limits._shared._budget = 5.0
    try:
        yield limits._shared, secrets
    finally:
        await limits.close()
        await secrets.close()


async def test_a_password_that_was_rotated_is_read_again_when_the_server_refuses_it(rotating: Rotating) -> None:
    clock, auditor = FakeClock(), ListAuditor()
    async with wired(rotating, clock, auditor) as (shared, _):
        assert await shared.take(POLICY, SUBJECT, 1) is not None
        rotating.rotate("second-password-of-redis")
        rotating.write(rotating.server.url)
        rotating.cut()
        # Long before the secret is due; a reading each second at most.
        clock.advance(2)
        async with asyncio.timeout(20):
            while (taken := await shared.take(POLICY, SUBJECT, 1)) is None:
                await asyncio.sleep(0.01)
        assert (taken.allowed, taken.used) == (True, 2)
        assert "DENIED" not in {event.code for event in auditor.events}


async def test_a_new_address_is_taken_up_when_the_secret_changed(rotating: Rotating) -> None:
    clock, auditor = FakeClock(), ListAuditor()
    async with wired(rotating, clock, auditor) as (shared, secrets):
        assert await shared.take(POLICY, SUBJECT, 1) is not None
        with rotating.server.client() as client:
            client.execute_command("ACL", "SETUSER", "second", "on", ">second-pass-1", "~*", "&*", "+@all")
            try:
                rotating.write(rotating.server.url.replace(f":{rotating.server.password}@", "second:second-pass-1@"))
                clock.advance(301)
                # Calls under way end on the connection that they began on.
                calls = [asyncio.create_task(shared.take(POLICY, f"{n}", 1)) for n in range(20)]
                await asyncio.sleep(0)
                await secrets.refresh_due()
                assert None not in await asyncio.gather(*calls)
                taken = await shared.take(POLICY, SUBJECT, 1)
                assert taken is not None
                assert taken.used == 2

                def users() -> set[str]:
                    listed = client.client_list()
                    return {one["user"] for one in listed if one["cmd"] != "client|list"}

                async with asyncio.timeout(10):
                    while users() != {"second"}:
                        await asyncio.sleep(0.01)
            finally:
                client.execute_command("ACL", "DELUSER", "second")
        assert auditor.events == []


async def test_a_rotated_address_that_would_be_refused_at_start_is_not_used(
    rotating: Rotating, caplog: pytest.LogCaptureFixture
) -> None:
    clock, auditor = FakeClock(), ListAuditor()
    async with wired(rotating, clock, auditor, profile="production") as (shared, secrets):
        for wrong in ("redis://:hunter2hunter2@cache.example/0", "no address hunter2hunter2"):
            rotating.write(wrong)
            clock.advance(301)
            await secrets.refresh_due()
            assert await shared.take(POLICY, SUBJECT, 1) is not None
    assert caplog.text.count("the new secret of rate_store is not used") == 2
    assert "hunter2hunter2" not in caplog.text


async def test_a_password_that_stays_wrong_is_denied_once_more_and_not_for_ever(rotating: Rotating) -> None:
    rotating.write(rotating.server.url.replace(rotating.server.password, "wrong-password-1"))
    clock, auditor = FakeClock(), ListAuditor()
    async with wired(rotating, clock, auditor) as (shared, _):
        clock.advance(2)
        assert await shared.take(POLICY, SUBJECT, 1) is None
        assert [event.code for event in auditor.events] == ["DENIED"]


async def test_in_memory_on_purpose_asks_no_server() -> None:
    limits = await rate_limits(
        Settings(rate_store="memory"),
        secrets=SecretSource(clock=FakeClock()),
        clock=RealClock(),
        auditor=ListAuditor(),
        digest=digest,
    )
    assert limits._shared is None
    await limits.close()
