"""S9, the audit log of a production service: what happened is in it, and `kiseki audit verify` finds it sound; then every
byte that is changed, line that is gone and end that is cut off is found; each process has a chain of its own; and where
nothing can be recorded any more, nothing is done that has to be."""

# ruff: noqa: E501  # a tampering is one line

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from kiseki.cli.main import run
from tests.servers.production import Production

ANYTHING: Final = "{ __typename }"
CREATE: Final = (
    'mutation { createUserAccount(input: {firstName: "A", lastName: "B", emailAddress: "a@example.com"}) { id } }'
)
ERASE: Final = "mutation ($i: EraseUserAccountInput!) { eraseUserAccount(input: $i) { id } }"
LIMIT: Final = 15
HAPPENED: Final = {
    "audit.started", "settings.loaded", "authentication.refused", "access.denied", "limit.hit", "request.refused", "admin.users",
    "erasure.requested", "erasure.done", "token.issued", "token.revoked", "audit.stopped",
}  # fmt: skip


async def account_of(service: Production) -> str:
    reply = await service.graphql("command", CREATE, token=service.tokens.admin("creator"))
    return str(reply.json()["data"]["createUserAccount"]["id"])


async def happen(service: Production) -> None:
    """Something of every kind."""
    tokens = service.tokens
    account = await account_of(service)
    await service.graphql("query", ANYTHING, token="a.b.c")
    await service.graphql("query", "{ getUserAccounts { id } }", token=tokens.user("denied"))
    await service.get("/api/admin/users", token=tokens.admin())
    for _ in range(LIMIT + 3):
        await service.graphql("query", ANYTHING, token=tokens.user("eager"))
    await service.graphql("query", ANYTHING, token=tokens.user(), host="evil.example")
    reply = await service.graphql(
        "command", ERASE, {"i": {"userAccountId": account}}, token=tokens.user("x", userId=account)
    )
    assert "errors" not in reply.json(), reply.body
    await service.recorded(lambda one: one["kind"] == "erasure.done")


class Log(NamedTuple):
    """A finished log in a folder of its own, to be verified with the keys of its service."""

    service: Production
    audit: Path
    anchors: Path

    def verified(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> tuple[int, dict[str, Any]]:
        """The exit code of `kiseki audit verify`, and what it says."""
        changed = {"KISEKI_AUDIT_DIR": str(self.audit), "KISEKI_AUDIT_ANCHORS": str(self.anchors)}
        for name, value in {**self.service.environment, **changed}.items():
            monkeypatch.setenv(name, value)
        code = run(["audit", "verify", "--json", "--data-dir", str(self.service.data)])
        return code, json.loads(capsys.readouterr().out)

    @property
    def main(self) -> Path:
        """The file of the service itself; commands have others."""
        return max(self.audit.glob("audit-*.jsonl"), key=lambda path: path.stat().st_size)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """What a service left that did something of everything, and ended."""
    service = Production(tmp_path_factory.mktemp("audit") / "p", RATE_LIMIT=LIMIT)
    with service:
        asyncio.run(happen(service))
        assert service.kiseki("token", "issue", "--subject", "x", "--production").returncode == 0
        assert service.kiseki("token", "revoke", "--subject", "x").returncode == 0
        service.stop()
    return Log(service, service.audit, service.anchors)


@pytest.fixture
def log(finished: Log, tmp_path: Path) -> Log:
    """A copy to do something to."""
    shutil.copytree(finished.audit, tmp_path / "audit")
    shutil.copytree(finished.anchors, tmp_path / "anchors")
    return Log(finished.service, tmp_path / "audit", tmp_path / "anchors")


def test_everything_that_happened_is_in_it_and_it_is_sound(
    log: Log, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = log.service.records()
    assert {record["kind"] for record in records} >= HAPPENED
    for record in records:
        # Who, what, when (UTC), how it ended.
        assert record["at"].endswith("Z")
        assert record["outcome"] in ("done", "refused", "failed")
    by_kind = {record["kind"]: record for record in records}
    assert by_kind["admin.users"]["subject"] == "the-administrator"
    assert by_kind["access.denied"]["operation"] == "getUserAccounts"
    assert by_kind["request.refused"]["code"] == "INVALID_HOST"
    assert by_kind["limit.hit"]["subject"] == "eager"
    assert by_kind["token.issued"]["actor"].startswith("operator")
    code, report = log.verified(monkeypatch, capsys)
    assert (code, report["sound"], report["problems"]) == (0, True, [])
    assert report["records"] == len(records)
    assert report["last_anchor"] is not None


def test_the_command_says_so_too(finished: Log) -> None:
    done = finished.service.kiseki("audit", "verify")
    assert (done.returncode, "is sound" in done.stdout) == (0, True)
    tail = finished.service.kiseki("audit", "tail", "-n", "5", "--json")
    assert [json.loads(line) for line in tail.stdout.splitlines()]


def _lines(path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(change(lines)))


def _flip(path: Path, at: float, mask: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= mask
    path.write_bytes(bytes(content))


def _rewrite(lines: list[bytes]) -> list[bytes]:
    """Another subject, in a line of good form."""
    return [line.replace(b'"subject":"denied"', b'"subject":"nobody"') for line in lines]


def _drop(number: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: [line for at, line in enumerate(lines) if at != number % len(lines)]


def _without_files(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()


TAMPERINGS: Final[dict[str, Callable[[Log], object]]] = {
    **{f"a bit at {at:.2f}": (lambda log, at=at: _flip(log.main, at)) for at in (0.0, 0.03, 0.2, 0.37, 0.5, 0.66, 0.81, 0.97)},  # type: ignore[misc]
    "case of a letter": lambda log: _flip(log.main, 0.5, 0x20),
    "a subject": lambda log: _lines(log.main, _rewrite),
    "the first line is gone": lambda log: _lines(log.main, _drop(0)),
    "a line is gone": lambda log: _lines(log.main, _drop(5)),
    "the last line is gone": lambda log: _lines(log.main, _drop(-1)),
    "half the end is gone": lambda log: _lines(log.main, lambda lines: lines[: len(lines) // 2]),
    "the last line is cut": lambda log: log.main.write_bytes(log.main.read_bytes()[:-20]),
    "emptied": lambda log: log.main.write_bytes(b""),
    "the file is gone": lambda log: log.main.unlink(),
    "all files are gone": lambda log: _without_files(log.audit),
    "two lines exchanged": lambda log: _lines(log.main, lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]]),
    "a line twice": lambda log: _lines(log.main, lambda lines: [*lines[:4], lines[3], *lines[4:]]),
    "the last line again": lambda log: _lines(log.main, lambda lines: [*lines, lines[-1]]),
    "a line of another file": lambda log: _lines(log.main, lambda lines: [*lines, min(log.audit.glob("audit-*"), key=lambda path: path.stat().st_size).read_bytes().splitlines(keepends=True)[0]]),
    "text": lambda log: _lines(log.main, lambda lines: [*lines[:2], b"hello\n", *lines[2:]]),
    "a forged record": lambda log: _lines(log.main, lambda lines: [*lines, lines[-1].replace(b'"number":', b'"number":1')]),
    "under another writer's name": lambda log: log.main.rename(log.main.with_name("audit-01ARZ3NDEKTSV4RRFFQ69G5FAV.jsonl")),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERINGS)
def test_whatever_is_changed_is_found(
    log: Log, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    before = {path: path.read_bytes() for path in log.audit.iterdir()}
    TAMPERINGS[what](log)
    assert {path: path.read_bytes() for path in log.audit.iterdir()} != before
    code, report = log.verified(monkeypatch, capsys)
    assert (code, report["sound"]) == (1, False), what
    assert report["problems"]


def test_a_log_with_another_key_is_not_believed(
    log: Log, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_text("7Yq0vR1nZ3kKf9sJb2xW5uTq8eGm4hLd6cPaVoXiBzE")
    other.chmod(0o600)
    monkeypatch.setitem(log.service.environment, "KISEKI_AUDIT_KEY", f"file://{other}")
    code, report = log.verified(monkeypatch, capsys)
    assert (code, report["sound"]) == (1, False)


def test_without_the_anchors_the_cut_is_not_found_which_is_why_they_are_elsewhere(
    log: Log, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other way round: it is the anchors that find it."""
    for path in log.audit.glob("audit-*.jsonl"):
        if path != log.main:
            path.unlink()
    for path in log.anchors.iterdir():
        path.unlink()
    _lines(log.main, lambda lines: lines[: len(lines) // 2])
    code, report = log.verified(monkeypatch, capsys)
    assert (code, report["anchors"]) == (0, 0)


async def test_each_worker_has_a_chain_of_its_own(tmp_path: Path) -> None:
    service = Production(tmp_path / "p", workers=2, RATE_STORE="redis://127.0.0.1:1/0")
    service.service.start()
    try:
        await service.service.ready()

        def refusing() -> set[str]:
            return {one["writer"] for one in service.records() if one["kind"] == "authentication.refused"}

        async with asyncio.timeout(30):
            while len(refusing()) < 2:
                await service.graphql("query", ANYTHING, token="a.b.c")
        for writer in refusing():
            own = [one for one in service.records() if one["writer"] == writer]
            assert [one["number"] for one in own] == list(range(1, len(own) + 1))
            assert [one["previous"] for one in own[1:]] == [one["mac"] for one in own[:-1]]
            assert own[0]["kind"] == "audit.started"
        done = await asyncio.to_thread(service.kiseki, "audit", "verify", "--json")  # while it runs
        assert done.returncode == 0, done.stdout
        assert json.loads(done.stdout)["writers"] >= 3
        service.stop()
        done = await asyncio.to_thread(service.kiseki, "audit", "verify", "--json")
        assert (done.returncode, json.loads(done.stdout)["notes"]) == (0, [])
    finally:
        service.kill()


def test_nothing_that_clients_send_makes_a_line(finished: Log) -> None:
    """Of what was recorded, each line is one record of ASCII."""
    for path in finished.audit.glob("audit-*.jsonl"):
        for line in path.read_bytes().split(b"\n")[:-1]:
            assert line.isascii()
            assert json.loads(line)["v"] == 1


async def test_log_injection(tmp_path: Path) -> None:
    service = Production(tmp_path / "p", TRUSTED_PROXIES="127.0.0.1/32")
    service.service.start()
    try:
        await service.service.ready()
        nasty = 'x"}\u2028{"kind":"forged"\u202e'
        token = service.tokens.user(nasty)
        await service.graphql(
            "query", "{ getUserAccounts { id } }", token=token, traceparent="x\u00ff", **{"x-correlation-id": "a b"}
        )
        await service.get("/api/admin/%0a%0dusers", token=token)
        record = await service.recorded(lambda one: one["kind"] == "access.denied")
        assert record["subject"] == nasty
        assert not [one for one in service.records() if one["kind"] == "forged"]
        for path in service.audit.glob("audit-*.jsonl"):
            assert path.read_bytes().isascii()
        tail = await asyncio.to_thread(service.kiseki, "audit", "tail")
        assert "\u202e" not in tail.stdout
        assert "\u2028" not in tail.stdout
    finally:
        service.kill()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(place)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("a small disk needs the right to mount one")
    yield place
    subprocess.run(["umount", str(place)], check=True)


async def test_a_full_disk_refuses_what_has_to_be_recorded(small_disk: Path, tmp_path: Path) -> None:
    # Its own space is what this is about, not that readiness would warn of a disk so small.
    service = Production(tmp_path / "p", AUDIT_DIR=small_disk, DISK_FREE=0)
    service.audit = small_disk
    service.service.start()
    try:
        await service.service.ready()
        tokens = service.tokens
        account = await account_of(service)
        assert (await service.get("/api/admin/users", token=tokens.admin())).status == 200
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        # What is left of the last block is used up by a few records.
        async with asyncio.timeout(20):
            while (page := await service.get("/api/admin/users", token=tokens.admin())).status == 200:
                pass
        assert page.status == 503
        assert page.headers["retry-after"]
        assert "firstName" not in page.body.decode()
        assert str(small_disk) not in page.body.decode()
        before = service.commits()
        for token in (tokens.admin(), tokens.user("x", userId=account)):
            reply = await service.graphql("command", ERASE, {"i": {"userAccountId": account}}, token=token)
            assert reply.status == 503, reply.body
        assert service.commits() == before
        async with asyncio.timeout(20):
            # The check of the disk itself may be the first to see it.
            while (ready := await service.manage("/ready")).json()["checks"]["audit"]["status"] == "ok":
                await asyncio.sleep(0.05)
        assert ready.status == 503
        # Nobody was let see anything; room again, and it goes on, with nothing wrong in the log.
        filler.unlink()
        async with asyncio.timeout(30):
            while (await service.manage("/ready")).status != 200:
                await asyncio.sleep(0.05)
        assert (await service.get("/api/admin/users", token=tokens.admin())).status == 200
        reply = await service.graphql("command", ERASE, {"i": {"userAccountId": account}}, token=tokens.admin())
        assert reply.status == 200, reply.body
        assert "errors" not in reply.json(), reply.body
        done = await asyncio.to_thread(service.kiseki, "audit", "verify")
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        service.kill()
