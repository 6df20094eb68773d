"""Unit: `kiseki scale` at the command line. What it asks of AWS and PostgreSQL is with the integration tests."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kiseki.cli.main import run

AWS = {
    "KISEKI_JOURNAL": "dynamodb://shop-production?region=eu-west-1",
    "KISEKI_READ_MODEL": "postgresql://kiseki:hunter2@db.example/kiseki?sslmode=verify-full",
}


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("KISEKI_", "AWS_"))]:
        monkeypatch.delenv(name)
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(["scale", *arguments]) == 1
    err = capsys.readouterr().err
    assert err.startswith("kiseki: ")
    assert err.count("\n") == 1
    assert "hunter2" not in err
    return err


def test_a_plan_without_options_has_the_defaults_of_the_infrastructure(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["scale", "plan", "--limit", "db.r6g.large"]) == 0
    out = capsys.readouterr().out
    assert "at 70 % CPU (out after 60 s, in after 300 s), × 2 while a release is deployed" in out
    assert "command-api  3–20" in out
    assert "query-api    3–20" in out
    assert out.endswith("it fits\n")
    assert "hunter2" not in out


def test_a_plan_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["scale", "plan", "--limit", "1000", "--tasks", "query-api=5-7", "--tasks", "lambda=4", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert {one["kind"]: one["maximum"] for one in plan["tasks"]} == {
        "command-api": 20,
        "query-api": 7,
        "updater": 2,
        "migrate": 1,
        "lambda": 4,
    }
    (server,) = plan["servers"]
    assert server["room"] == 1_000 - 3 - server["needed"]
    assert plan["findings"] == []


def test_a_plan_that_does_not_fit_is_shown_and_ends_as_one_line_and_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["scale", "plan", "--limit", "100"]) == 1
    printed = capsys.readouterr()
    assert "1 finding" in printed.out
    assert printed.err.startswith("kiseki: up to 680 connections to db.example:5432, 583 more than the 97 ")
    assert printed.err.count("\n") == 1


def test_for_programs_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["scale", "plan", "--limit", "100", "--json"]) == 1
    assert [one["name"] for one in json.loads(capsys.readouterr().out)["findings"]] == ["database connections"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan"], "it is not known how many it takes; name it with --limit"),
        (["plan", "--limit", "db.x9.huge"], "neither a number nor a class"),
        (["plan", "--limit", "elsewhere:5432=100"], "the servers of the settings are: db.example:5432"),
        (["plan", "--tasks", "command-api"], "has to be KIND=MIN-MAX or KIND=N"),
        (["plan", "--tasks", "command-api=3-many"], "has to be KIND=MIN-MAX or KIND=N"),
        (["plan", "--tasks", "worker=3"], "the kinds are serve, command-api"),
        (["plan", "--tasks", "updater=3-2"], "from 3 to 2 tasks is no range"),
        (["plan", "--commands-per-task", "100"], "says nothing without --commands"),
        (["plan", "--app", "nowhere:app"], "nowhere"),
        (["show", "--service", "worker=w"], "--service names 'worker'"),
        (["show", "--limit", "elsewhere:5432=100"], "the servers of the settings are"),
    ],
)
def test_what_can_be_mended_is_one_line_and_1(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, *arguments)


@pytest.mark.parametrize("command", ["plan", "show"])
def test_settings_that_were_forgotten_do_not_fit(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in AWS:
        monkeypatch.delenv(name)
    assert "journal, keys, read_model: in files of one machine" in refused(capsys, command)


def test_the_region_is_asked_for_where_the_settings_do_not_say_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KISEKI_JOURNAL", AWS["KISEKI_READ_MODEL"])
    assert "--region and --cluster have to be given" in refused(capsys, "show")


def test_without_credentials_one_line_says_which_are_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    assert "no AWS credentials found; set AWS_PROFILE" in refused(capsys, "show")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "nobody" in refused(capsys, "show")


def test_aws_that_is_not_reached_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(name, value)
    assert "the cluster shop-production can't be read: Could not connect" in refused(capsys, "show")
