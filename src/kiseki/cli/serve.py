"""`kiseki serve`, `command-api`, `query-api`, `updater`, and a supervisor's workers: settings, checks, then run."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvloop

from kiseki.cli.applications import load_application
from kiseki.cli.banner import announce
from kiseki.cli.signals import no_more
from kiseki.service.checks import refuse_unsafe
from kiseki.service.identity import with_development_key
from kiseki.service.kinds import PARTS, Listening, Parts
from kiseki.service.launch import read_launch
from kiseki.service.logging import configure_logging
from kiseki.service.masks import masking_of
from kiseki.service.process import run_process
from kiseki.service.settings_sources import load_settings
from kiseki.service.supervisor import supervise

__all__ = ["serve", "work"]

_LAST_WAIT: Final = 5.0
"""Seconds for threads that still run when everything has ended."""


def serve(kind: str, *, application: str | None, config: Path | None, options: Mapping[str, Any]) -> None:
    """Runs a kind of process until it is told to end. Raises KisekiError, one clear line, when it can't."""
    settings = load_settings(options=options, environ=os.environ, directory=Path.cwd(), config=config)
    refuse_unsafe(settings, os.environ, PARTS[kind])
    settings = with_development_key(settings)
    masker = masking_of(settings)
    configure_logging(level=settings.log_level, log_format=settings.log_format, role=kind, masker=masker)
    loaded = load_application(application)
    parts = PARTS[kind]
    if kind == "serve" and not loaded.queries:
        parts = Parts(command=True, updater=True)
    welcome = partial(announce, settings, shipped=application is None)
    if settings.workers > 1 and parts.apis:
        _run(supervise(parts, application, settings, welcome))
    else:
        _run(run_process(parts, loaded, settings, welcome, masker=masker))


def work() -> None:
    """Runs what the supervisor wrote to standard input."""
    launch = read_launch(sys.stdin.fileno())
    settings = launch.read_settings()
    masker = masking_of(settings)
    configure_logging(level=settings.log_level, log_format=settings.log_format, role=launch.name, masker=masker)
    application = load_application(launch.application)
    _run(run_process(launch.parts, application, settings, _say_nothing, launch=launch, masker=masker))


def _say_nothing(_listening: Listening) -> None:
    return


def _run(process: Coroutine[Any, Any, bool]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            in_time = runner.run(process)
        finally:
            no_more()
            # What hangs in a thread is waited for when the loop closes, but not for ever.
            last = threading.Timer(_LAST_WAIT, _leave)
            last.daemon = True
            last.start()
        if not in_time:
            # Something did not end when it should have and is no longer waited for; the log says what.
            _leave()


def _leave() -> None:
    logging.shutdown()
    sys.stdout.flush()
    os._exit(1)
