"""Looks for known vulnerabilities in everything that is pinned. `make scan` runs it, in the scanners' environment.

usage: scan.py [--timeout SECONDS] [LOCK ...]

Exit 0: every package was looked up and none has a known vulnerability. 1: there are findings. 3: not everything was
looked up, because the data can't be reached or does not know a package, and among what was there is no finding: that is
no clean result. 2: wrong usage, or a lock file that can't be scanned. pip-audit alone can't be asked: it ends with 0
also when it skipped every package.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

__all__ = ["CLEAN", "FINDINGS", "NOT_SCANNED", "Result", "main", "read_report", "scan"]

ROOT: Final = Path(__file__).parents[1]
CLEAN: Final = 0
FINDINGS: Final = 1
UNUSABLE: Final = 2
NOT_SCANNED: Final = 3
_CONNECT_SECONDS: Final = 5
_SHOWN: Final = 5


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of one lock file."""

    lock: str
    looked_up: int = 0
    skipped: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    failure: str | None = None
    """Why nothing was looked up."""
    unusable: bool = field(default=False)
    """Whether the lock file itself is what is wrong."""

    @property
    def code(self) -> int:
        """As the exit code of a scan of this file alone."""
        if self.unusable:
            return UNUSABLE
        if self.findings:
            return FINDINGS
        if self.failure is not None or self.skipped or not self.looked_up:
            return NOT_SCANNED
        return CLEAN

    def lines(self) -> list[str]:
        """What to print."""
        if self.failure is not None:
            word = "can't be scanned" if self.unusable else "NOT SCANNED"
            return [f"{self.lock}: {word}: {self.failure}"]
        lines = [f"{self.lock}: {finding}" for finding in self.findings]
        if self.skipped:
            some = ", ".join(self.skipped[:_SHOWN]) + (", ..." if len(self.skipped) > _SHOWN else "")
            total = self.looked_up + len(self.skipped)
            lines.append(f"{self.lock}: NOT SCANNED: the data has nothing on {len(self.skipped)} of {total}: {some}")
        if not lines and not self.looked_up:
            lines.append(f"{self.lock}: NOT SCANNED: it names no package")
        if not lines:
            lines.append(f"{self.lock}: clean: {self.looked_up} packages, no known vulnerability")
        return lines


def scan(lock: Path, *, timeout: float) -> Result:
    """Looks up what a lock file pins, for at most this many seconds."""
    if not lock.is_file():
        return Result(lock=lock.name, failure="there is no such file", unusable=True)
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(lock), "--require-hashes", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", str(_CONNECT_SECONDS)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, check=False)  # noqa: S603  # of constants
    except subprocess.TimeoutExpired:
        return Result(lock=lock.name, failure=f"no answer within {timeout:g} seconds")
    except OSError as problem:
        return Result(lock=lock.name, failure=f"pip-audit can't be run: {problem}")
    return read_report(lock.name, done.returncode, done.stdout, done.stderr)


def read_report(name: str, code: int, out: bytes, errors: bytes) -> Result:
    """What pip-audit said, not taken for more than it is."""
    said = errors.decode(errors="replace").strip().splitlines()
    last = said[-1][:300] if said else f"pip-audit ended with {code} and said nothing"
    try:
        report: Any = json.loads(out)
        packages = report["dependencies"]
        skipped = tuple(sorted(one["name"] for one in packages if "skip_reason" in one))
        findings = tuple(
            f"{one['name']} {one['version']}: {known['id']}, mended in {', '.join(known['fix_versions']) or 'none'}"
            for one in packages
            if "skip_reason" not in one
            for known in one["vulns"]
        )
        looked_up = sum("skip_reason" not in one for one in packages)
    except (ValueError, KeyError, TypeError):
        if "hash" in last or "requirements" in last.lower():
            return Result(lock=name, failure=last, unusable=True)
        return Result(lock=name, failure=f"the data of known vulnerabilities can't be reached ({_kind(said)})")
    if code not in (0, 1) or (code == 1 and not findings):
        return Result(lock=name, failure=last)
    return Result(lock=name, looked_up=looked_up, skipped=skipped, findings=findings)


def _kind(said: Sequence[str]) -> str:
    """The class of the error on the last line: its text names addresses."""
    last = said[-1] if said else ""
    return last.split(":", 1)[0].rsplit(".", 1)[-1][:60] or "no reason given"


def main(arguments: Sequence[str]) -> int:
    """Scans, prints, and gives the exit code: usage before findings, findings before what was not scanned."""
    parser = argparse.ArgumentParser(prog="scan.py", description="Looks for known vulnerabilities in what is pinned.")
    parser.add_argument("locks", nargs="*", type=Path, help="lock files; all of the project unless given")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for each file (120)")
    options = parser.parse_args(arguments)
    locks = options.locks or sorted(ROOT.glob("requirements*.lock"))
    codes: set[int] = set()
    for lock in locks:
        result = scan(lock, timeout=options.timeout)
        codes.add(result.code)
        for line in result.lines():
            print(line, flush=True)
    return next((code for code in (UNUSABLE, FINDINGS, NOT_SCANNED) if code in codes), CLEAN)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
