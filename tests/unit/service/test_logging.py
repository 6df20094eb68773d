"""Unit: what a log line looks like, and what never gets into one."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from kiseki.kernel.errors import Unavailable
from kiseki.service.logging import RequestIds, configure_logging, request_ids


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.contextvars.clear_contextvars()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def configured(level: str = "info", log_format: str = "json") -> io.StringIO:
    stream = io.StringIO()
    configure_logging(level=level, log_format=log_format, role="serve", stream=stream)
    return stream


def test_a_line_of_a_request_carries_its_ids() -> None:
    stream = configured()
    token = request_ids.set(RequestIds("a" * 32, "order-7"))
    logging.getLogger("kiseki.command.handler").warning("stream %s moved", "UserAccount-1")
    request_ids.reset(token)
    logging.getLogger("kiseki").info("outside")
    inside, outside = lines(stream)
    assert inside["message"] == "stream UserAccount-1 moved"
    assert (inside["level"], inside["logger"], inside["role"]) == ("warning", "kiseki.command.handler", "serve")
    assert (inside["trace_id"], inside["correlation_id"]) == ("a" * 32, "order-7")
    assert inside["time"].endswith("Z")
    assert "trace_id" not in outside


def test_fields_that_are_known_are_kept_and_others_are_not() -> None:
    stream = configured()
    structlog.contextvars.bind_contextvars(stream="UserAccount-1")
    logging.getLogger("kiseki").info("event", extra={"status": 401, "email_address": "hanako@example.com"})
    (line,) = lines(stream)
    assert (line["stream"], line["status"]) == ("UserAccount-1", 401)
    assert "hanako" not in stream.getvalue()


def test_a_traceback_is_there_without_values() -> None:
    stream = configured()

    def fail() -> None:
        password = "a very secret value"
        raise Unavailable(f"broken {len(password)}")

    try:
        fail()
    except Unavailable:
        logging.getLogger("kiseki").exception("it failed")
    (line,) = lines(stream)
    assert "Unavailable: broken 19" in line["exception"]
    assert line["code"] == "UNAVAILABLE"
    assert "a very secret value" not in stream.getvalue()


def test_a_line_break_makes_no_second_line() -> None:
    stream = configured()
    logging.getLogger("kiseki").warning('first\n{"message": "forged"}')
    assert len(lines(stream)) == 1


def test_the_level_is_kept_to() -> None:
    stream = configured(level="warning")
    logging.getLogger("kiseki").info("not this")
    logging.getLogger("kiseki").warning("this")
    assert [line["message"] for line in lines(stream)] == ["this"]


def test_the_servers_own_loggers_come_through_the_same_way() -> None:
    stream = configured()
    logging.getLogger("uvicorn.error").error("from the server")
    logging.getLogger("uvicorn.access").info("one for each request")
    assert [line["message"] for line in lines(stream)] == ["from the server"]


def test_in_development_lines_are_for_people() -> None:
    stream = configured(log_format="console")
    logging.getLogger("kiseki").info("hello")
    assert "hello" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_configuring_again_replaces() -> None:
    first, second = configured(), configured()
    logging.getLogger("kiseki").info("once")
    assert first.getvalue() == ""
    assert len(lines(second)) == 1
