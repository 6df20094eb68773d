"""Rules for the whole test suite: a skip is allowed only with a reason that `tests/skips.txt` lists."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_ALLOWED = Path(__file__).with_name("skips.txt")


def _allowed() -> list[str]:
    lines = _ALLOWED.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


class _Skips:
    def __init__(self) -> None:
        self.unlisted: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple) and not hasattr(report, "wasxfail"):
            self._check(report.nodeid, report.longrepr[2])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            self._check(report.nodeid, report.longrepr[2])

    def _check(self, where: str, why: str) -> None:
        reason = why.removeprefix("Skipped: ")
        if not any(reason.startswith(allowed) for allowed in _allowed()):
            self.unlisted.append(f"{where}: {reason}")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.unlisted:
            terminalreporter.write_line(f"skipped for a reason that tests/skips.txt does not list: {line}", red=True)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unlisted and os.environ.get("CI") == "true" and session.exitstatus == 0:
            session.exitstatus = 1


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Skips(), "kiseki-skips")
