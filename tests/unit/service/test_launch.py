"""Unit: what a supervisor tells the processes it starts."""

from __future__ import annotations

import asyncio
import os

import pytest

from kiseki.service.kinds import Parts
from kiseki.service.launch import STOP, BadLaunch, Launch, read_launch, watch_supervisor
from kiseki.service.settings import Settings


def test_a_process_gets_what_its_supervisor_had(monkeypatch: pytest.MonkeyPatch) -> None:
    # The environment of the worker is no second source of settings.
    monkeypatch.setenv("KISEKI_WORKERS", "7")
    settings = Settings(workers=3, drain_delay=0.5, profile="production", log_level="debug")
    launch = Launch(
        name="worker-1",
        parts=Parts(command=True),
        application="shop:app",
        settings=settings.model_dump(mode="json"),
        sockets={"command": 7},
        control="/tmp/x.sock",
    )
    reading, writing = os.pipe()
    os.write(writing, launch.line())
    read = read_launch(reading)
    os.close(reading)
    os.close(writing)
    assert read == launch
    assert read.read_settings() == settings


@pytest.mark.parametrize("sent", [b"", b"\n", b"hello\n", b'{"name": "x"}\n'])
def test_anything_else_is_refused(sent: bytes) -> None:
    reading, writing = os.pipe()
    os.write(writing, sent)
    os.close(writing)
    with pytest.raises(BadLaunch, match="not by hand"):
        read_launch(reading)
    os.close(reading)


async def test_what_the_supervisor_says_is_heard_and_its_end_is_noticed() -> None:
    reading, writing = os.pipe()
    heard: asyncio.Queue[str] = asyncio.Queue()
    watch_supervisor(reading, heard.put_nowait)
    for _ in range(2):
        os.write(writing, STOP)
        assert await asyncio.wait_for(heard.get(), 5) == "the supervisor says so"
    os.close(writing)
    assert await asyncio.wait_for(heard.get(), 5) == "the supervisor is gone"
    os.close(reading)
