"""What is unsafe about a process's settings. Used at start: the production profile refuses what is found here.

A finding says what is wrong, and what to do about it, without starting anything.
"""

from __future__ import annotations

from typing import NamedTuple

from kiseki.kernel.errors import KisekiError
from kiseki.service.settings import Settings

__all__ = ["Finding", "UnsafeSettings", "findings", "refuse_unsafe"]


class Finding(NamedTuple):
    """One thing that is unsafe: its stable name, what is wrong, and the remedy."""

    name: str
    problem: str
    remedy: str


class UnsafeSettings(KisekiError):
    """The process does not start, because it would be unsafe. The message has one line for each finding."""

    code = "UNSAFE_SETTINGS"

    def __init__(self, profile: str, found: list[Finding]) -> None:
        lines = [f"the {profile} profile refuses to start; {len(found)} finding{'s' if len(found) != 1 else ''}:"]
        lines += [f"  - {finding.name}: {finding.problem}; {finding.remedy}" for finding in found]
        super().__init__("\n".join(lines))
        self.findings = tuple(found)


def findings(settings: Settings) -> list[Finding]:
    """Everything that is unsafe about these settings, for the profile they name."""
    found: list[Finding] = []
    if not settings.development:
        found.append(
            Finding(
                "authentication",
                "no identity is configured, so nobody could be told from anybody else, and this version has no "
                "authentication to configure yet",
                "use the development profile on this machine only",
            )
        )
        found.append(
            Finding(
                "transport",
                "the APIs would be served over plain HTTP, and this version has no TLS to configure yet",
                "use the development profile on this machine only",
            )
        )
    grace = settings.termination_grace
    if grace is not None and settings.shutdown_total > grace:
        found.append(
            Finding(
                "shutdown",
                f"a shutdown may take {settings.shutdown_total:g} s, but the platform kills after {grace:g} s "
                "(termination_grace), which would cut requests",
                "shorten drain_delay or the other delays, or raise the platform's grace period and this setting",
            )
        )
    return found


def refuse_unsafe(settings: Settings) -> None:
    """Raises UnsafeSettings when there is a finding."""
    found = findings(settings)
    if found:
        raise UnsafeSettings(settings.profile, found)
