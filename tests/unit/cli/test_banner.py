"""Unit: what a process says when it serves."""

from __future__ import annotations

import json
import re
import shlex

import pytest

from kiseki.cli.banner import announce, urls
from kiseki.service.kinds import Listening
from kiseki.service.settings import Settings

BOTH = Listening(ports={"command": 1080, "query": 1082}, management=1558)


def test_people_get_addresses_and_examples_to_paste(capsys: pytest.CaptureFixture[str]) -> None:
    announce(Settings(), BOTH, shipped=True)
    out = capsys.readouterr().out
    assert "http://127.0.0.1:1080/api/graphql" in out
    assert "http://127.0.0.1:1558/ready" in out
    first, second = re.findall(r"curl .*", out)
    command = shlex.split(first)
    assert command[:3] == ["curl", "-s", "http://127.0.0.1:1080/api/graphql"]
    assert "花子" in json.loads(command[-1])["query"]
    assert "getUserAccounts" in json.loads(shlex.split(second)[-1])["query"]


def test_an_example_is_only_given_where_it_works(capsys: pytest.CaptureFixture[str]) -> None:
    announce(Settings(), BOTH, shipped=False)
    announce(Settings(), Listening(ports={"query": 1082}, management=1558), shipped=True)
    assert "curl" not in capsys.readouterr().out


def test_programs_get_one_line(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        announce(Settings(log_format="json"), BOTH, shipped=True)
    assert capsys.readouterr().out == ""
    (record,) = caplog.records
    assert record.message == "listening"
    assert record.__dict__["urls"]["query"] == "http://127.0.0.1:1082/api/graphql"


@pytest.mark.parametrize(("host", "shown"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("h", "h")])
def test_addresses_can_be_opened(host: str, shown: str) -> None:
    assert urls(Settings(host=host), BOTH)["command"] == f"http://{shown}:1080/api/graphql"


def test_the_playground_is_only_named_where_it_is_served() -> None:
    assert "command_playground" in urls(Settings(), BOTH)
    assert "command_playground" not in urls(Settings(profile="production"), BOTH)
