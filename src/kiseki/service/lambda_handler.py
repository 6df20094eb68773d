"""The updater as an AWS Lambda behind an event source mapping of the journal table's DynamoDB stream.

Its entry point is `kiseki.service.lambda_handler.handler`. `KISEKI_APP=package.module:attribute` names the application
(the shipped one unless set), and all settings come from the environment, as everywhere. The event source mapping needs
`FunctionResponseTypes=[ReportBatchItemFailures]` and no maximum of retries: what can't be applied now is given back
until it can be, for as long as the stream keeps it (24 hours); the sweeper finds the rest.

The answer is always `{"batchItemFailures": [...]}` with the first record that must come again, also when nothing could
be applied. An exception would come to the same, but would halve the batch (BisectBatchOnFunctionError), which helps
against a poisonous record and not against a database that is down. Exceptions are left for a function that is set up
wrongly, which shows as errors of the function: settings, application, tables of another definition.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import random
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import structlog

from kiseki.application.system import SystemClock
from kiseki.kernel.errors import Unavailable
from kiseki.projection.backoff import Backoff
from kiseki.service.embedded_metrics import embedded_fields
from kiseki.service.lambda_parts import LambdaParts, Source, Warm, prepare
from kiseki.service.lambda_records import Counts, Delivery, deliveries_of, stream_number
from kiseki.service.lambda_updater import NoBuild
from kiseki.service.logging import configure_logging

__all__ = ["LambdaContext", "LambdaHandler", "handler"]

_log = logging.getLogger(__name__)


class LambdaContext(Protocol):
    """What is used of the context that AWS's runtime client gives a handler."""

    aws_request_id: str
    function_name: str

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until Lambda kills the process."""
        ...


class LambdaHandlerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds."""

    page: int = 500
    """Records applied at once."""
    attempts: int = 4
    """Tries of a page that can't be applied, before it is given back."""
    backoff_initial: float = 0.1
    backoff_maximum: float = 2.0
    reserve: float = 1.0
    """What is kept of the remaining time, to answer; of a short time a fifth."""
    close_timeout: float = 2.0


class _Batch:
    """The work of one invocation and how far it is, so that also one that is cut off can be answered."""

    def __init__(self, deliveries: Sequence[Delivery]) -> None:
        self.deliveries = deliveries
        self.done = 0
        self.problem: BaseException | None = None
        """Why the next delivery could not be applied."""


class LambdaHandler:
    """The function, and what it keeps between invocations: an event loop, stores and open builds.

    Nothing is opened before the first invocation. Lambda freezes the process between two of them, and connections may
    die meanwhile: what fails is closed and opened anew before it is tried again.
    """

    def __init__(
        self,
        *,
        environ: Mapping[str, str] | None = None,
        settings: LambdaHandlerSettings | None = None,
        prepare: Callable[[Mapping[str, str], Path], LambdaParts] = prepare,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`environ` is the process's own unless given."""
        self._environ = environ
        self._settings = settings or LambdaHandlerSettings()
        self._prepare = prepare
        self._pause = pause
        self._jitter = jitter
        self._parts: LambdaParts | None = None
        self._runner: asyncio.Runner | None = None
        self._warm: Warm | None = None
        self._cut_off = False
        self._table: str | None = None
        """Of what is open."""

    def __call__(self, event: Any, context: LambdaContext) -> dict[str, Any]:
        """Applies the records of an event; the answer for the event source mapping.

        Raises SettingsError, DefinitionError and whatever else says that the function is set up wrongly.
        """
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(self.answer(event, context), context=contextvars.copy_context())

    async def answer(self, event: Any, context: LambdaContext) -> dict[str, Any]:
        """As calling it, on the event loop that is there."""
        if self._parts is None:
            environ = os.environ if self._environ is None else self._environ
            parts = self._prepare(environ, Path(environ.get("LAMBDA_TASK_ROOT") or os.getcwd()))
            configure_logging(level=parts.settings.log_level, log_format="json", role="lambda", stream=sys.stdout)
            self._parts = parts
        with structlog.contextvars.bound_contextvars(request_id=context.aws_request_id):
            counts = Counts()
            first = await self._handle(self._parts, event, context, counts)
            with structlog.contextvars.bound_contextvars(**_metrics(self._parts, counts, context.function_name)):
                _log.info("%d records, %d given back", counts.records, counts.redelivered)
        return {"batchItemFailures": [] if first is None else [{"itemIdentifier": first}]}

    async def _handle(self, parts: LambdaParts, event: Any, context: LambdaContext, counts: Counts) -> str | None:
        """The record that has to come again, with all after it; None when that is none."""
        records = event.get("Records") if isinstance(event, dict) else None
        if not isinstance(records, list) or not records:
            _log.warning("the event holds no records; is it from an event source mapping of a DynamoDB stream?")
            return None
        try:
            source = await self._source(parts)
        except Unavailable as problem:
            counts.redelivered = len(records)
            _log.error("%d records are given back, nobody knows whether they count: %s", len(records), problem)
            return stream_number(records[0]) or ""
        batch = _Batch(
            deliveries_of(records, table=source.table, region=source.region, commit_of=source.commit_of, counts=counts)
        )
        remaining = context.get_remaining_time_in_millis() / 1000
        budget = remaining - min(self._settings.reserve, remaining / 5)
        parked_before = parts.telemetry.parked_streams
        try:
            async with asyncio.timeout(budget):
                await self._apply(parts, batch, counts)
        except TimeoutError:
            # What was under way on a connection was cut off. Closing it may take longer than there is time to answer.
            batch.problem = TimeoutError(f"the time of the function is up ({remaining:.1f} s in all)")
            self._cut_off = True
        except Exception:
            await self._let_go()
            raise
        finally:
            counts.parked = parts.telemetry.parked_streams - parked_before
        if batch.done == len(batch.deliveries):
            return None
        return _give_back(records, batch, counts)

    async def _source(self, parts: LambdaParts) -> Source:
        """The stream that counts now, asked each time: what comes of a table that a restore replaced may be of commits
        that are no more. What is open belongs to one table and is opened anew for another."""
        source = parts.source if parts.in_force is None else await parts.in_force()
        if self._table not in (None, source.table):
            _log.warning("the journal is in table %s now", source.table)
            await self._let_go()
        self._table = source.table
        return source

    async def _apply(self, parts: LambdaParts, batch: _Batch, counts: Counts) -> None:
        """Applies the batch page by page, as far as it can be; what is done, and the problem, is in the batch."""
        backoff = Backoff(
            initial=self._settings.backoff_initial, maximum=self._settings.backoff_maximum, jitter=self._jitter
        )
        tries = 0
        if self._cut_off:
            await self._let_go()
        while batch.done < len(batch.deliveries):
            page = batch.deliveries[batch.done : batch.done + self._settings.page]
            failed: int | None = 0
            batch.problem = None
            try:
                if self._warm is None:
                    self._warm = await parts.open()
                failed = await self._warm.updater.apply(page, counts)
            except NoBuild as problem:
                batch.problem = problem
                return  # nothing that comes by itself within a few seconds
            except Unavailable as problem:
                batch.problem = problem
            if failed is None:
                batch.done += len(page)
                tries = 0
                backoff.succeeded()
                continue
            batch.done += failed
            batch.problem = batch.problem or Unavailable("a stream could not be applied; the lines above say why")
            tries = 1 if failed else tries + 1
            await self._let_go()
            if tries >= self._settings.attempts:
                return
            await self._pause(backoff.failed())

    async def _let_go(self) -> None:
        """Closes stores and builds, those that do not answer any more too."""
        warm, self._warm, self._cut_off = self._warm, None, False
        if warm is None:
            return
        try:
            async with asyncio.timeout(self._settings.close_timeout):
                await warm.close()
        except (Unavailable, TimeoutError, OSError) as problem:
            _log.warning("connections could not be closed in order: %s", str(problem) or type(problem).__name__)

    async def close(self) -> None:
        """Lets go of everything. For tests: Lambda just ends the process."""
        await self._let_go()


def _give_back(records: Sequence[Any], batch: _Batch, counts: Counts) -> str:
    """The sequence number of the first record that must come again; logs why."""
    place = batch.deliveries[batch.done].place
    number = stream_number(records[place])
    while number is None and place > 0:
        place -= 1  # what comes again once more than it must is skipped
        number = stream_number(records[place])
    counts.redelivered = len(records) - place
    _log.error(
        "%d of %d records are given back, from %s on: %s", counts.redelivered, len(records), number, batch.problem
    )
    # An empty one makes Lambda deliver all of the batch again.
    return number or ""


def _metrics(parts: LambdaParts, counts: Counts, function_name: str) -> dict[str, Any]:
    """The counts as fields of a log line from which CloudWatch makes metrics (embedded metric format)."""
    return embedded_fields(
        parts.settings.metrics_namespace,
        {"function": function_name},
        msgspec.structs.asdict(counts),
        {},
        SystemClock().now(),
    )


handler: Final = LambdaHandler()
"""What Lambda calls. It holds nothing before its first invocation."""
