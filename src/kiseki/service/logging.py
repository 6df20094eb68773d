"""Structured logs: one JSON object per line in production, readable lines in development, to standard error.

Used by the composition root. All rooms log with the standard library; what they pass as `extra` and what is bound with
`structlog.contextvars` becomes fields, and every line of a request carries its trace id and correlation id. Messages
never hold personal data; tracebacks show no values of variables.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Final, NamedTuple, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from kiseki.kernel.errors import KisekiError
from kiseki.security.masking import Masker

__all__ = ["RequestIds", "configure_logging", "request_ids"]


class RequestIds(NamedTuple):
    """What ties log lines to a request and to the events it led to."""

    trace_id: str
    correlation_id: str


request_ids: Final[ContextVar[RequestIds | None]] = ContextVar("kiseki_request_ids", default=None)
"""The ids of the request that is being answered. Set by the HTTP shell for each one."""

_FIELDS: Final = ("api", "method", "status", "stream", "projection", "command", "role", "urls", "data_dir")
"""What rooms may pass as `extra`; anything else would be a way for personal data to get into a log unseen."""

_NOISY: Final = ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio")
_LIBRARIES: Final = ("botocore", "aiobotocore", "aiohttp", "urllib3", "sqlalchemy")
"""Their lower levels are for those who mend the libraries, and debug lines of botocore may show what was sent."""


def configure_logging(
    *, level: str, log_format: str, role: str | None = None, stream: TextIO | None = None, masker: Masker | None = None
) -> None:
    """Sends all logs of this process to a stream (standard error). Calling it again replaces what it did before.

    `masker` masks what looks like a secret in finished lines, wherever it came from.
    """
    output = sys.stderr if stream is None else stream
    shared: Sequence[Processor] = (
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(allow=_FIELDS),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _request_fields,
        _role_field(role),
        _error_code,
    )
    last: Sequence[Processor]
    if log_format == "json":
        last = (
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(ensure_ascii=False),
        )
    else:
        last = (
            structlog.dev.ConsoleRenderer(
                colors=output.isatty(), exception_formatter=structlog.dev.plain_traceback, timestamp_key="time"
            ),
        )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=(
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *last,
            *(() if masker is None else (masker.processor,)),
        ),
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in _NOISY:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        # Its INFO lines are about its own workings, which this process runs itself, and anyone can make it warn.
        quiet = logging.ERROR if name.startswith("uvicorn") else logging.WARNING
        logger.setLevel(logging.DEBUG if level == "debug" else quiet)
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)


def _request_fields(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    ids = request_ids.get()
    if ids is not None:
        event.setdefault("trace_id", ids.trace_id)
        event.setdefault("correlation_id", ids.correlation_id)
    return event


def _role_field(role: str | None) -> Processor:
    def add(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        if role is not None:
            event.setdefault("role", role)
        return event

    return add


def _error_code(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    info: Any = event.get("exc_info")
    problem = info[1] if isinstance(info, tuple) else info
    if isinstance(problem, KisekiError):
        event.setdefault("code", problem.code)
    return event
