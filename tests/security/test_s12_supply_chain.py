"""What kiseki is made of: lock files with hashes and no address, the bill of materials, and the scan that never calls
"clean" what it has not looked at."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tools.scan import CLEAN, FINDINGS, NOT_SCANNED, UNUSABLE, read_report

ROOT = Path(__file__).parents[2]
SCANNERS = ROOT / ".venv-scanners" / "bin" / "python"
LOCKS = sorted(ROOT.glob("requirements*.lock"))
ENTRY = re.compile(r"[a-z0-9][a-z0-9.\-\[\],]*==[A-Za-z0-9.!+\-]+(?: ; [^\\]+)?")
NOT_HERE = "the scanners' environment (.venv-scanners) is not there"


def entries(lock: Path) -> dict[str, list[str]]:
    """What is pinned, with its hashes."""
    found: dict[str, list[str]] = {}
    for line in lock.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if line.strip() and not line.startswith("#"):
            entry, *hashes = re.split(r"\s+--hash=", line.strip())
            found[entry.strip()] = hashes
    return found


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_entry_is_pinned_and_has_hashes_of_a_strong_kind(lock: Path) -> None:
    pinned = entries(lock)
    assert len(pinned) > 5
    for entry, hashes in pinned.items():
        assert ENTRY.fullmatch(entry), entry
        assert hashes, entry
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in hashes), entry


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_names_no_index_no_host_no_path(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    assert "://" not in text
    assert "@" not in text
    for word in ("--index-url", "--extra-index-url", "--find-links", "--trusted-host", "--no-index", "-e ", "file:"):
        assert word not in text, word


def test_what_runs_is_pinned_alike_wherever_it_is_pinned() -> None:
    def versions(name: str) -> set[str]:
        return {entry.split(" ;")[0] for entry in entries(ROOT / name)}

    assert versions("requirements.lock") <= versions("requirements-dev.lock")


def run(tool: str, *arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    if not SCANNERS.exists():
        pytest.skip(NOT_HERE)
    return subprocess.run(
        [str(SCANNERS), str(ROOT / "tools" / tool), *arguments],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


@pytest.fixture(scope="module")
def bill(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("sbom") / "sbom.json"
    packages = [part for part in sys.path if part.endswith("site-packages")]
    done = run("sbom.py", "--output", str(path), *(word for one in packages for word in ("--packages", one)))
    assert done.returncode == 0, done.stderr
    made: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return made


def test_the_bill_lists_exactly_what_is_pinned(bill: dict[str, Any]) -> None:
    listed = {f"{component['name']}=={component['version']}" for component in bill["components"]}
    assert listed == {entry.split(" ;")[0] for entry in entries(ROOT / "requirements.lock")}
    assert bill["metadata"]["component"]["name"] == "kiseki"
    for component in bill["components"]:
        assert component["purl"] == f"pkg:pypi/{component['name']}@{component['version']}"
        pinned = next(
            hashes
            for entry, hashes in entries(ROOT / "requirements.lock").items()
            if entry.split(" ;")[0] == f"{component['name']}=={component['version']}"
        )
        assert {f"sha256:{one['value']}" for one in component["properties"]} == set(pinned)


def test_the_bill_says_licences_and_nothing_of_the_place_where_it_was_made(bill: dict[str, Any]) -> None:
    licences = {component["name"]: component["licenses"][0]["license"]["name"] for component in bill["components"]}
    assert licences["msgspec"] == "BSD-3-Clause"
    assert licences["graphql-core"].startswith("MIT")
    unknown = {name for name, licence in licences.items() if licence == "NOASSERTION"}
    assert unknown <= {"colorama"}, "what is not installed on this system has no licence to read"
    text = json.dumps(bill)
    schema = bill["$schema"]
    assert "://" not in text.replace(schema, "")
    assert str(ROOT) not in text
    assert "timestamp" not in text
    assert "serialNumber" not in bill


def test_the_bill_is_the_same_when_made_again(bill: dict[str, Any], tmp_path: Path) -> None:
    again = tmp_path / "again.json"
    packages = [part for part in sys.path if part.endswith("site-packages")]
    arguments = ["--output", str(again), *(word for one in packages for word in ("--packages", one))]
    assert run("sbom.py", *arguments, environment={"TZ": "Asia/Tokyo", "LANG": "C"}).returncode == 0
    assert json.loads(again.read_text(encoding="utf-8")) == bill


@pytest.mark.parametrize(
    ("lock", "complaint"),
    [("flask\n", "not pinned"), ("flask==3.0.0\n", "no hash"), (None, "No such file")],
    ids=["unpinned", "without hashes", "missing"],
)
def test_no_bill_is_made_of_what_is_not_pinned(tmp_path: Path, lock: str | None, complaint: str) -> None:
    path = tmp_path / "requirements.lock"
    if lock is not None:
        path.write_text(lock, encoding="utf-8")
    done = run("sbom.py", "--lock", str(path))
    assert done.returncode == 1
    assert done.stdout == ""
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def closed_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_without_network_the_scan_says_that_it_did_not_scan(tmp_path: Path) -> None:
    proxy = closed_port()
    done = run(
        "scan.py",
        str(ROOT / "requirements.lock"),
        environment={"HTTPS_PROXY": proxy, "HTTP_PROXY": proxy, "https_proxy": proxy, "XDG_CACHE_HOME": str(tmp_path)},
    )
    assert done.returncode == NOT_SCANNED, done.stdout + done.stderr
    assert "requirements.lock: NOT SCANNED: the data of known vulnerabilities can't be reached" in done.stdout
    assert "clean" not in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "://" not in done.stdout


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        proxy = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        done = run(
            "scan.py", "--timeout", "3", str(ROOT / "requirements.lock"),
            environment={"HTTPS_PROXY": proxy, "https_proxy": proxy, "XDG_CACHE_HOME": str(tmp_path)},
        )  # fmt: skip
    assert time.monotonic() - started < 30
    assert done.returncode == NOT_SCANNED
    assert "NOT SCANNED: no answer within 3 seconds" in done.stdout


def test_a_lock_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    done = run("scan.py", str(tmp_path / "nothing.lock"))
    assert done.returncode == UNUSABLE
    assert "there is no such file" in done.stdout


def package(name: str, *ids: str, fixed: tuple[str, ...] = ("2.0",)) -> dict[str, object]:
    known = [{"id": one, "fix_versions": list(fixed), "aliases": [], "description": ""} for one in ids]
    return {"name": name, "version": "1.0", "vulns": known}


def skipped(name: str) -> dict[str, object]:
    return {"name": name, "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("code", "packages", "wanted", "said"),
    [
        (0, [package("a"), package("b")], CLEAN, "clean: 2 packages, no known vulnerability"),
        (1, [package("a", "CVE-1"), package("b")], FINDINGS, "a 1.0: CVE-1, mended in 2.0"),
        (1, [package("a", "CVE-1", fixed=())], FINDINGS, "a 1.0: CVE-1, mended in none"),
        (1, [package("a", "CVE-1"), skipped("b")], FINDINGS, "NOT SCANNED: the data has nothing on 1 of 2: b"),
        (0, [package("a"), skipped("b")], NOT_SCANNED, "NOT SCANNED: the data has nothing on 1 of 2: b"),
        (0, [skipped("a"), skipped("b")], NOT_SCANNED, "NOT SCANNED: the data has nothing on 2 of 2: a, b"),
        (0, [], NOT_SCANNED, ""),
        (1, [package("a")], NOT_SCANNED, "NOT SCANNED"),
        (2, [package("a")], NOT_SCANNED, "NOT SCANNED"),
    ],
)
def test_a_report_is_not_taken_for_more_than_it_is(
    code: int, packages: list[dict[str, object]], wanted: int, said: str
) -> None:
    """The last but two are what pip-audit says, ending with 0, where it knows no package at all."""
    result = read_report("x.lock", code, json.dumps({"dependencies": packages}).encode(), b"")
    assert result.code == wanted
    lines = "\n".join(result.lines())
    assert said in lines
    assert ("clean" in lines) == (wanted == CLEAN)


@pytest.mark.parametrize("out", [b"", b"null", b"[]", b"{}", b'{"dependencies": [{}]}', b"\xff", b"<html>"])
def test_what_is_no_report_is_no_clean_result(out: bytes) -> None:
    result = read_report("x.lock", 0, out, b"requests.exceptions.ProxyError: https://somewhere refused\n")
    assert result.code == NOT_SCANNED
    assert result.lines() == ["x.lock: NOT SCANNED: the data of known vulnerabilities can't be reached (ProxyError)"]
