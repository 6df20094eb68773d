"""`AuditReport`: what verifying an audit log found. Filled by `verify`, shown by the command line.

`KeyDoubt` keeps a wrong key from filling it with one problem for each line.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec

from kiseki.security.audit.record import KeyUnknown, RecordProblem

__all__ = ["AuditReport", "KeyDoubt"]

_MOST_PROBLEMS: Final = 100
_MOST_NOTES: Final = 100


class AuditReport(msgspec.Struct, kw_only=True):
    """What was found. `problems` are the first hundred; `notes` are no faults of the log."""

    writers: int = 0
    records: int = 0
    anchors: int = 0
    last_anchor: datetime | None = None
    problems: list[str] = msgspec.field(default_factory=list)
    problems_found: int = 0
    key_is_wrong: bool = False
    """Nothing could be verified, because all of it was written with a key that is not here."""
    notes: list[str] = msgspec.field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether the log is as it was written, as far as the anchors reach."""
        return not self.problems_found

    def problem(self, what: str) -> None:
        """Adds one."""
        self.problems_found += 1
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(what)

    def note(self, what: str) -> None:
        """Adds something worth knowing."""
        if len(self.notes) < _MOST_NOTES:
            self.notes.append(what)


class KeyDoubt:
    """Lines of an unknown key are told one by one only when something verifies; else the key is what is wrong."""

    def __init__(self, report: AuditReport) -> None:
        self._report = report
        self._held: list[str] = []
        self._lines = 0
        self._is_right = False

    def line(self, where: str, problem: RecordProblem) -> None:
        """A line is not authentic."""
        what = f"{where}: {problem}"
        if self._is_right or not isinstance(problem, KeyUnknown):
            self._report.problem(what)
            return
        self._lines += 1
        if len(self._held) < _MOST_PROBLEMS:
            self._held.append(what)

    def authentic(self) -> None:
        """A line is authentic, so the key is one of the log's."""
        if self._is_right:
            return
        self._is_right = True
        for what in self._held:
            self._report.problem(what)
        self._report.problems_found += self._lines - len(self._held)
        self._held.clear()

    def end(self) -> None:
        """All was read."""
        if self._is_right or not self._lines:
            return
        report = self._report
        report.key_is_wrong = True
        report.problems_found += 1
        report.problems.insert(
            0,
            f"the key is not that of this log: {self._lines:,} records and anchors name another, and none verifies; "
            "give the log's own (and those of before a rotation); if this is it, all of the log was replaced",
        )
        del report.problems[_MOST_PROBLEMS:]
