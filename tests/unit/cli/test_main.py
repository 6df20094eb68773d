"""Unit: the command line's own answers."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kiseki import __version__
from kiseki.cli.main import run


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["version"]) == 0
    assert capsys.readouterr().out == f"kiseki {__version__}\n"


@pytest.mark.parametrize(
    ("lacks", "extra", "arguments"),
    [
        ("asyncpg", "postgres", ["database", "prepare", "--admin", "postgresql://localhost/postgres"]),
        ("aiobotocore", "aws", ["scale", "show", "--limit", "500"]),
    ],
)
def test_a_command_of_an_extra_that_is_not_installed_says_which(
    lacks: str, extra: str, arguments: list[str], tmp_path: Path
) -> None:
    (tmp_path / "kiseki.toml").write_text(
        'journal = "dynamodb://shop?region=eu-west-1"\nread_model = "postgresql://kiseki@localhost/shop"\n'
    )
    program = (
        f"import sys; sys.modules[{lacks!r}] = None; from kiseki.cli.main import run; sys.exit(run({arguments!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"kiseki: this needs {lacks}, which is not installed; pip install 'kiseki[{extra}]'\n"


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_lists_what_there_is_and_hides_what_is_not_for_people(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 0
    out = capsys.readouterr().out
    for command in ("serve", "command-api", "query-api", "updater", "journal", "projection", "version"):
        assert command in out
    assert "worker " not in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["srve"], "serve"),
        (["serve", "--worker", "2"], "--workers"),
        (["serve", "--workers", "many"], "--workers"),
        (["journal"], "Missing command"),
        (["journal", "show"], "kiseki journal show --help"),
    ],
)
def test_what_is_asked_in_the_wrong_way_is_one_line_and_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("kiseki: ")
    assert printed.err.count("\n") == 1
    assert said in printed.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["journal", "show", "UserAccount-1"], "check --data-dir"),
        (["projection", "status"], "check --data-dir"),
    ],
)
def test_what_a_person_can_mend_is_one_line_and_1(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("kiseki: ")
    assert printed.err.count("\n") == 1
    assert said in printed.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--profile", "prod"], "--profile"),
        (["--workers", "0"], "--workers"),
        (["--log-level", "loud"], "--log-level"),
        (["--config", "missing.toml"], "missing.toml"),
        (["--app", "nowhere_to_be_found:app"], "nowhere_to_be_found"),
        (["--host", "no such host"], "change `host`"),
    ],
)
def test_a_service_that_can_not_start_says_so_in_one_line(arguments: list[str], said: str) -> None:
    """In a process of its own: a service takes over the signals of its process, and ends it when a thread hangs."""
    ended = subprocess.run(
        [sys.executable, "-m", "kiseki", "serve", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("kiseki: ")
    assert ended.stderr.count("\n") == 1
    assert said in ended.stderr


@pytest.fixture
def signals_put_back() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals_put_back")
def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("kiseki.cli.serve.serve", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        run(["serve"])
