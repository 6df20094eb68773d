"""`Health`: what `/startup`, `/ready` and `/alive` answer. Used by the management port and by `/api/health`.

Checks run in the background and their results are kept: a probe is cheap, and however many come, the stores see one
check each interval. A result that is too old counts as a failure, so that a stuck check can't look healthy.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from kiseki.kernel.errors import KisekiError

__all__ = ["Check", "CheckResult", "Health", "disk_check"]

_log = logging.getLogger(__name__)

Check = Callable[[], Awaitable[None]]
"""Returns when all is well; raises a KisekiError whose message says what is not."""

_STALE_INTERVALS: Final = 5
_RECHECK: Final = 0.25
_PATIENCE: Final = 1.0


class CheckResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """One check: `ok`, `failed` (with its cause) or `unknown` (never run, or too long ago)."""

    status: str
    cause: str | None = None


class Readiness(msgspec.Struct, frozen=True):
    """What a readiness probe answers."""

    status: str
    checks: Mapping[str, CheckResult]

    @property
    def ready(self) -> bool:
        """Whether to send requests here."""
        return self.status == "ready"


class Health:
    """Knows whether this process has started, whether it drains, and how what it depends on is doing.

    `local` checks concern this process and machine, `remote` ones what others share; a load balancer asks for the local
    ones only, so that an outage of a database does not recycle the whole fleet. `interval` is in seconds.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        interval: float,
        timeout: float,
        local: Mapping[str, Check],
        remote: Mapping[str, Check],
    ) -> None:
        self._clock = clock
        self._interval = interval
        self._timeout = timeout
        self._local = dict(local)
        self._remote = dict(remote)
        self._results: dict[str, tuple[float, CheckResult]] = {}
        self._task: asyncio.Task[None] | None = None
        self.started = False
        """Set when the process serves."""
        self.waiting: str | None = None
        """What the start waits for, while it does."""
        self.draining = False
        """Set when shutdown begins."""
        self.stuck: Callable[[], str | None] = _never
        """What does not answer any more, of the processes that this one speaks for."""

    def add_remote(self, name: str, check: Check) -> None:
        """Adds a check of something shared."""
        self._remote[name] = check

    async def start(self) -> None:
        """Runs every check, then again and again in the background.

        What fails at first gets a moment: a new read model is there as soon as the updater has begun.
        """
        patience = self._clock() + _PATIENCE
        while not all(result.status == "ok" for result in (await self._look()).values()):
            if self._clock() >= patience:
                break
            await asyncio.sleep(_RECHECK)
        await self.check_now()
        self._task = asyncio.create_task(self._repeat(), name="health checks")

    async def stop(self) -> None:
        """Ends the background checks."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def readiness(self, *, local: bool = False) -> Readiness:
        """Whether to send requests here, and if not, why."""
        checks: dict[str, CheckResult] = {}
        if not self.started:
            checks["starting"] = CheckResult("failed", self.waiting or "the process is starting")
        if self.draining:
            checks["draining"] = CheckResult("failed", "the process is shutting down")
        for name in self._local if local else (*self._local, *self._remote):
            checks[name] = self._result(name)
        ready = all(result.status == "ok" for result in checks.values())
        return Readiness("ready" if ready else "not ready", checks)

    async def check_now(self) -> None:
        """Runs all checks together, each with a timeout, and logs what changed."""
        results = await self._look()
        now = self._clock()
        for name, result in results.items():
            before = self._results.get(name)
            if self.draining:
                pass  # what ends is no news
            elif result.status != "ok" and (before is None or before[1] != result):
                _log.warning("health: %s failed: %s", name, result.cause)
            elif result.status == "ok" and before is not None and before[1].status != "ok":
                _log.info("health: %s has recovered", name)
            self._results[name] = (now, result)

    async def _look(self) -> dict[str, CheckResult]:
        checks = {**self._local, **self._remote}
        results = await asyncio.gather(*(self._run(check) for check in checks.values()))
        return dict(zip(checks, results, strict=True))

    async def _repeat(self) -> None:
        while True:
            # What failed is looked at more often, so that readiness is back soon after its cause has gone.
            failing = any(result.status != "ok" for _, result in self._results.values())
            await asyncio.sleep(min(self._interval, _RECHECK) if failing else self._interval)
            await self.check_now()

    async def _run(self, check: Check) -> CheckResult:
        try:
            async with asyncio.timeout(self._timeout):
                await check()
        except TimeoutError:
            return CheckResult("failed", f"no answer within {self._timeout:g} s")
        except KisekiError as problem:
            return CheckResult("failed", str(problem))
        except Exception as problem:  # noqa: BLE001  # a check must never end the checks; its text may hold anything
            _log.error("a health check raised", exc_info=problem)
            return CheckResult("failed", "the check itself failed; the log has the cause")
        return CheckResult("ok")

    def _result(self, name: str) -> CheckResult:
        kept = self._results.get(name)
        if kept is None:
            return CheckResult("unknown", "not checked yet")
        at, result = kept
        age = self._clock() - at
        if age > _STALE_INTERVALS * self._interval + self._timeout:
            return CheckResult("unknown", f"the last check was {age:.0f} s ago")
        return result


def _never() -> str | None:
    return None


class DiskFull(KisekiError):
    """The data directory can't take more."""

    code = "DISK"


def disk_check(directory: Path, free: int, what: str = "the data directory") -> Check:
    """A check that a directory can be written and has this many bytes left. `what` is what messages call it."""

    def look() -> None:
        try:
            left = os.statvfs(directory)
            with tempfile.TemporaryFile(dir=directory) as probe:
                probe.write(b"kiseki")
        except OSError as problem:
            raise DiskFull(f"{what} can't be written: {problem.strerror}") from problem
        if left.f_bavail * left.f_frsize < free:
            raise DiskFull(f"{what} has less than {free} bytes left")

    async def check() -> None:
        await asyncio.to_thread(look)

    return check
