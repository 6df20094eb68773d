"""S10, secrets: with marked secrets in every setting that has one and errors of every kind provoked, no mark is in
anything that a process says or shows; a secret is rotated where it is; and a production that holds a secret as it is,
or anything else unsafe, does not start."""

# ruff: noqa: E501  # a finding is one line

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pytest

from kiseki.cli.main import run
from tests.e2e.client import Client
from tests.servers.certificates import replace
from tests.servers.postgres import PostgresServer
from tests.servers.processes import clean_environment
from tests.servers.production import Production
from tests.servers.redis import NoRedis, RedisServer

ANYTHING: Final = "{ __typename }"


class Marks:
    """Secrets by what they are for, and a search for them in every form that they take in logs."""

    def __init__(self) -> None:
        self.by_name: dict[str, bytes] = {}

    def made(self, name: str) -> str:
        """A new one."""
        secret = secrets.token_urlsafe(40)
        self.known(name, secret)
        return secret

    def known(self, name: str, secret: str | bytes) -> None:
        self.by_name[name] = secret if isinstance(secret, bytes) else secret.encode()

    def found_in(self, shown: bytes) -> set[str]:
        return {name for name, secret in self.by_name.items() if any(form in shown for form in _forms(secret))}


def _forms(secret: bytes) -> Iterable[bytes]:
    yield secret
    yield secret[:16]
    yield secret[-16:]
    yield base64.b64encode(secret)[:40]
    yield base64.urlsafe_b64encode(secret)[:40]
    yield secret.hex().encode()
    yield quote(secret).encode()
    yield repr(secret)[2:-1].encode()


def a_file(folder: Path, name: str, content: str | bytes) -> str:
    """A secret in a file; its reference."""
    path = folder / name
    replace(path, content if isinstance(content, bytes) else content.encode())
    return f"file://{path}"


def given_to(monkeypatch: pytest.MonkeyPatch, service: Production, changed: Mapping[str, str | None]) -> None:
    """The environment of this process is that of the service, changed so."""
    for name in [name for name in os.environ if name.startswith(("KISEKI_", "AWS_"))]:
        monkeypatch.delenv(name)
    for name, value in {**service.environment, **{f"KISEKI_{name}": value for name, value in changed.items()}}.items():
        if value is not None:
            monkeypatch.setenv(name, value)


def processes(service: Production) -> list[Path]:
    """What /proc has of the service's processes."""
    assert service.service.process is not None
    first = service.service.process.pid
    found = [Path(f"/proc/{first}")]
    for about in Path("/proc").glob("[0-9]*"):
        try:
            if int((about / "stat").read_text().rpartition(")")[2].split()[1]) == first:
                found.append(about)
        except (OSError, ValueError):
            continue
    return found


def test_the_search_finds_marks() -> None:
    marks = Marks()
    secret = marks.made("a").encode()
    for form in _forms(secret):
        assert marks.found_in(b"before " + form + b" after") == {"a"}
    assert marks.found_in(b"nothing of it") == set()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Any:
    try:
        with RedisServer() as server:
            yield server
    except NoRedis as problem:
        pytest.skip(f"Redis tests need a server: {problem}")


async def test_no_secret_is_shown_by_a_service_with_errors_of_every_kind(
    tmp_path: Path, redis: RedisServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    marks, folder = Marks(), tmp_path / "given"
    folder.mkdir()
    wrong = marks.made("password of Redis, wrong")
    password = marks.made("password of the TLS key")
    service = Production(
        tmp_path / "p",
        "--log-level",
        "debug",
        workers=2,
        RATE_STORE=a_file(folder, "redis", f"redis://:{wrong}@127.0.0.1:{redis.port}/0"),
        TLS_KEY_PASSWORD=a_file(folder, "tls", password),
        AUDIT_KEYS_PREVIOUS=a_file(folder, "audit-before", marks.made("audit key before")),
        VAULT_SECRET_ID=a_file(folder, "vault", marks.made("secret id of Vault")),
    )
    service.authority.issue(password=password.encode())
    marks.known("secret of tokens", service.tokens.secret)
    marks.known("audit key", service.audit_secret)
    marks.known("master key", (service.secrets / "master").read_bytes())
    marks.known("key of TLS", b"".join((service.secrets / "server.key").read_bytes().split(b"\n")[1:-2])[:64])
    shown: list[tuple[str, bytes]] = []
    service.service.start()
    try:
        await service.service.ready()
        tokens = service.tokens
        good = tokens.made(tokens.claims("x", "admin"), "HS256")
        marks.known("a token's signature", good.rpartition(".")[2])
        marks.known("a token's claims", good.split(".")[1])
        for api in ("command", "query"):
            for token in (good, good[:-10] + "AAAAAAAAAA", good + "x", good.replace(".", ",")):
                for document in (ANYTHING, "{ nothing }", "{", "{ " + token + " }", tokens.secret):
                    reply = await service.graphql(api, document, {"secret": tokens.secret}, token=token)
                    if document != tokens.secret:  # what a client sends may come back to it
                        shown.append((f"answer to {document[:12]}", reply.body))
                    shown.append((f"headers of the answer to {document[:12]}", repr(reply.headers).encode()))
            for path in ("/api/admin/users", f"/api/{tokens.secret[:20]}", f"/api/admin/users?first={good}"):
                shown.append((f"answer to GET {path[:12]}", (await service.get(path, api=api, token=good)).body))
        # Things break.
        replace(service.jwks, b'{"keys": [{"kty": "oct", "k": "' + service.audit_secret.encode() + b'"}]}')
        lines = (
            b"-----BEGIN ENCRYPTED PRIVATE KEY-----",
            password.encode(),
            b"-----END ENCRYPTED PRIVATE KEY-----",
            b"",
        )
        replace(service.certificate.key, b"\n".join(lines))
        await service.recorded(lambda one: one["kind"] == "jwks.failed")
        await service.recorded(lambda one: one["kind"] == "certificate.reloaded" and one["outcome"] == "failed")
        await service.recorded(lambda one: one["kind"] == "limit.shared_unavailable")
        shown += [(path, (await service.manage(path)).body) for path in ("/metrics", "/ready", "/startup", "/nothing")]
        running = processes(service)
        assert len(running) >= 4  # the supervisor, two workers, the updater
        shown += [
            (f"{about}/{name}", (about / name).read_bytes()) for about in running for name in ("environ", "cmdline")
        ]
    finally:
        service.kill()
    assert "rate limits can't be used" in service.log()
    shown.append(("log", service.log().encode()))
    kept = [
        *service.audit.rglob("*"),
        *service.anchors.rglob("*"),
        *service.ledger.rglob("*"),
        *service.data.rglob("*"),
    ]
    shown += [(str(path), path.read_bytes()) for path in kept if path.is_file()]
    given_to(monkeypatch, service, {})
    where = ("--data-dir", str(service.data))
    for command in (
        ("check", "--deploy", *where),
        ("audit", "tail", *where),
        ("audit", "verify", *where),
        ("keys", "status", *where),
        ("erasure", "status", *where),
        ("serve", "--help"),
    ):
        await asyncio.to_thread(run, command)
        printed = capsys.readouterr()
        shown.append((" ".join(command[:2]), (printed.out + printed.err).encode()))
    assert all(content for name, content in shown if name == "check --deploy")
    assert {(where, name) for where, content in shown for name in marks.found_in(content)} == set()


def failed(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command that has ended in a process of its own, not in order."""
    done = subprocess.run(
        [sys.executable, "-m", "kiseki", *arguments],
        capture_output=True,
        timeout=60,
        check=False,
        env=clean_environment(environment),
    )
    assert done.returncode != 0
    assert b"Traceback" not in done.stderr
    return done


def said(*arguments: str, **environment: str) -> bytes:
    """What a command says that can't do its work."""
    done = failed(*arguments, **environment)
    assert done.stderr.startswith(b"kiseki: "), done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("how", ["in the URL", "percent-encoded", "in a file"])
def test_a_wrong_password_of_the_database_is_not_shown(
    tmp_path: Path, postgres_server: PostgresServer, how: str
) -> None:
    marks = Marks()
    password = marks.made("password") + "/@:?#%"
    where = f"127.0.0.1:{postgres_server.port}/postgres"
    match how:
        case "in the URL":
            password = password[:-6]
            url = f"postgresql://kiseki:{password}@{where}"
        case "percent-encoded":
            url = f"postgresql://kiseki:{quote(password, safe='')}@{where}"
        case _:
            url = f"postgresql://kiseki@{where}?password={a_file(tmp_path, 'password', password)}"
    shown = said("migrate", "--data-dir", str(tmp_path / "data"), KISEKI_JOURNAL=url, KISEKI_READ_MODEL=url)
    assert b"password" in shown  # so it was tried
    assert marks.found_in(shown) == set()


def test_references_and_settings_that_are_wrong_show_nothing(tmp_path: Path) -> None:
    marks = Marks()
    secret = marks.made("a secret")
    readable = tmp_path / "readable"
    readable.write_text(secret)
    readable.chmod(0o644)
    service = Production(tmp_path / "p")
    changes: tuple[dict[str, str], ...] = (
        {"TOKEN_SECRET": f"valut://{secret}"},
        {"TOKEN_SECRET": f"file://relative/{secret}"},
        {"TOKEN_SECRET": f"env:{secret}"},
        {"TOKEN_SECRET": f"file://{readable}"},
        {"TOKEN_SECRET": secret},
        {"AUDIT_KEY": secret},
        {"TLS_KEY_PASSWORD": secret},
        {"RATE_STORE": f"redis://:{secret}@cache.example:notaport/0"},
        {"JOURNAL": f"postgresql://kiseki:{secret}@[db/kiseki"},
        {"JOURNAL": f"mysql://kiseki:{secret}@db/kiseki"},
        {"PASSWORD": secret},
    )
    for changed in changes:
        environment = service.environment | {f"KISEKI_{name}": value for name, value in changed.items()}
        done = failed("serve", "--data-dir", str(service.data), **environment)
        assert done.stderr.count(b"\nkiseki: ") + done.stderr.startswith(b"kiseki: ") == 1, done.stderr
        assert marks.found_in(done.stdout + done.stderr) == set(), changed.keys()


async def test_a_secret_of_tokens_is_rotated_where_it_is(tmp_path: Path) -> None:
    service = Production(tmp_path / "p")
    service.service.start()
    try:
        await service.service.ready()
        tokens = service.tokens
        old = tokens.made(tokens.claims("x", "user"), "HS256")
        other = tokens.user()
        fresh = secrets.token_urlsafe(48)
        tokens.secret = fresh
        new = tokens.made(tokens.claims("x", "user"), "HS256")

        async def statuses() -> list[int]:
            return [(await service.graphql("query", ANYTHING, token=token)).status for token in (old, new, other)]

        assert await statuses() == [200, 401, 200]
        replace(service.secrets / "token", fresh.encode())
        async with asyncio.timeout(15):
            while await statuses() != [401, 200, 200]:
                await asyncio.sleep(0.1)
        await service.recorded(
            lambda one: one["kind"] in ("secret.rotated", "jwks.refreshed") and "token" in json.dumps(one)
        )
        # What is put there by mistake is not used, and does not take the service down.
        replace(service.secrets / "token", b"short")
        await asyncio.sleep(2.5)
        assert await statuses() == [401, 200, 200]
        assert fresh not in service.log() + json.dumps(service.records())
    finally:
        service.kill()


# Production refuses to start


@pytest.fixture(scope="module")
def safe(tmp_path_factory: pytest.TempPathFactory) -> Production:
    """A production whose settings are safe. That its audit key is not there is seen only by a start, which so ends."""
    service = Production(tmp_path_factory.mktemp("safe"))
    (service.secrets / "audit").unlink()
    return service


def _findings(safe: Production) -> Mapping[str, tuple[dict[str, str | None], set[str]]]:
    """Each unsafe setting, and the names of what is found."""
    inside = str(safe.data / "inside")
    plain = "Jq3Zt8vRk1WmXc5NbYf7Hs2DgLp9EuAo6TiKj4CwQxUe"
    return {
        "nothing verifies tokens": ({"TOKEN_KEYS": None, "TOKEN_SECRET": None}, {"authentication"}),
        "no issuer": ({"TOKEN_ISSUER": None}, {"authentication"}),
        "keys over http": ({"JWKS_URL": "http://issuer.example/jwks"}, {"authentication"}),
        "a plain secret": ({"TOKEN_SECRET": plain}, {"secret.plain"}),
        "a short secret": ({"TOKEN_SECRET": "short"}, {"secret.plain", "authentication"}),
        "a secret that can be guessed": ({"TOKEN_SECRET": "secret" * 10}, {"secret.plain", "authentication"}),
        "a secret of one letter": ({"TOKEN_SECRET": "a" * 64}, {"secret.plain", "authentication"}),
        "a plain audit key": ({"AUDIT_KEY": plain}, {"secret.plain"}),
        "a plain password of TLS": ({"TLS_KEY_PASSWORD": plain}, {"secret.plain"}),
        "a plain secret id": ({"VAULT_SECRET_ID": plain}, {"secret.plain"}),
        "a reference that is none": ({"AUDIT_KEY": "valut://kv/audit#key"}, {"secret.reference"}),
        "plain HTTP": ({"TLS_CERTIFICATE": None, "TLS_KEY": None}, {"transport"}),
        "a proxy that nobody knows": ({"TLS_CERTIFICATE": None, "TLS_KEY": None, "TLS_PROXY": "true"}, {"transport"}),
        "any host": ({"HOSTS": None}, {"hosts"}),
        "everybody a proxy": ({"TRUSTED_PROXIES": "0.0.0.0/0"}, {"trusted_proxies"}),
        "half of everybody a proxy": ({"TRUSTED_PROXIES": "0.0.0.0/1"}, {"trusted_proxies"}),
        "no network": ({"TRUSTED_PROXIES": "proxy"}, {"trusted_proxies"}),
        "a master key beside the data": ({"MASTER_KEY": None}, {"master_key.default"}),
        "a ledger beside the data": ({"ERASURE_LEDGER": None}, {"erasure_ledger"}),
        "a ledger inside the data": ({"ERASURE_LEDGER": inside}, {"erasure_ledger"}),
        "no audit key": ({"AUDIT_KEY": None}, {"audit_key"}),
        "no anchors": ({"AUDIT_ANCHORS": None}, {"audit_anchors"}),
        "anchors inside the data": ({"AUDIT_ANCHORS": inside}, {"audit_anchors"}),
        "an audit log that goes on without": ({"AUDIT_FAILURE": "continue"}, {"audit_failure"}),
        "an audit log on standard output alone": ({"AUDIT_SINKS": "stdout"}, {"audit_sinks"}),
        "limits in each process": ({"WORKERS": "3"}, {"rate_store"}),
        "a shutdown that is too long": ({"DRAIN_DELAY": "100", "REQUESTS_DONE_TIMEOUT": "60"}, {"shutdown"}),
        "requests that outlive a shutdown": ({"REQUEST_TIMEOUT": "20"}, {"shutdown"}),
        "a wait that outlives its request": ({"CONSISTENCY_WAIT": "20"}, {"timeouts"}),
    }  # fmt: skip


FINDINGS: Final = (
    "nothing verifies tokens", "no issuer", "keys over http", "a plain secret", "a short secret", "a secret that can be guessed",
    "a secret of one letter", "a plain audit key", "a plain password of TLS", "a plain secret id", "a reference that is none",
    "plain HTTP", "a proxy that nobody knows", "any host", "everybody a proxy", "half of everybody a proxy", "no network",
    "a master key beside the data", "a ledger beside the data", "a ledger inside the data", "no audit key", "no anchors",
    "anchors inside the data", "an audit log that goes on without", "an audit log on standard output alone",
    "limits in each process", "a shutdown that is too long", "requests that outlive a shutdown", "a wait that outlives its request",
)  # fmt: skip


def test_every_finding_is_tried(safe: Production) -> None:
    assert tuple(_findings(safe)) == FINDINGS


@pytest.mark.parametrize("what", FINDINGS)
def test_production_refuses_to_start(
    safe: Production, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    changed, names = _findings(safe)[what]
    given_to(monkeypatch, safe, changed)
    data = ("--data-dir", str(safe.data))
    assert run(["check", "--deploy", "--json", *data]) == 1
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert {finding["name"] for finding in found} == names
    assert all(finding["problem"] and finding["remedy"] for finding in found)
    assert run(["serve", *data]) == 1
    refused = capsys.readouterr()
    assert f"kiseki: the production profile refuses to start; {len(found)} finding" in refused.err
    assert not safe.data.exists(), "something was made before it was refused"
    for value in changed.values():
        if value is not None and len(value) > 20 and "/" not in value:
            assert value not in printed.out + printed.err + refused.out + refused.err


def test_what_is_safe_is_said_to_be(safe: Production) -> None:
    done = safe.kiseki("check", "--deploy")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "nothing was found\n"


def test_a_development_is_looked_at_as_a_production(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kiseki", "check", "--deploy", "--json", "--data-dir", str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=False, env=clean_environment({}),
    )  # fmt: skip
    assert done.returncode == 1
    assert {finding["name"] for finding in json.loads(done.stdout)} >= {
        "authentication",
        "transport",
        "hosts",
        "master_key.default",
        "audit_key",
        "audit_anchors",
        "erasure_ledger",
    }


async def test_a_default_secret_there_is_not(tmp_path: Path) -> None:
    """A development without any key makes one at random: a token of one start is nothing at the next, nor elsewhere."""
    service = Production(
        tmp_path / "p",
        PROFILE="development",
        TOKEN_KEYS=None,
        TOKEN_SECRET=None,
        TOKEN_ISSUER=None,
        TLS_CERTIFICATE=None,
        TLS_KEY=None,
    )
    claims = service.tokens.claims("x", "admin", iss="kiseki-development")
    service.service.start()
    try:
        await service.service.ready()
        for guess in (b"", b"secret", b"kiseki", b"changeme", b"\0" * 32, b"development" * 3, b"kiseki-development"):
            signed = service.tokens.sign({"alg": "HS256"}, claims, key=guess, algorithm="HS256")
            async with Client(service.port("query")) as client:
                assert (await client.graphql(ANYTHING, authorization=f"Bearer {signed}")).status == 401
    finally:
        service.kill()
