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
    found += _timing(settings)
    return found


def refuse_unsafe(settings: Settings) -> None:
    """Raises UnsafeSettings when there is a finding."""
    found = findings(settings)
    if found:
        raise UnsafeSettings(settings.profile, found)


def _timing(settings: Settings) -> list[Finding]:
    """Times that have to fit into each other."""
    found = []
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
    if settings.requests_done_timeout < settings.request_timeout:
        found.append(
            Finding(
                "shutdown",
                f"a request may take {settings.request_timeout:g} s (request_timeout), but a shutdown waits "
                f"{settings.requests_done_timeout:g} s for it (requests_done_timeout) and then cuts it",
                "make requests_done_timeout at least as long as request_timeout",
            )
        )
    if settings.consistency_wait >= settings.request_timeout:
        found.append(
            Finding(
                "timeouts",
                f"a query may wait {settings.consistency_wait:g} s for a write (consistency_wait), but is given up "
                f"after {settings.request_timeout:g} s (request_timeout)",
                "make consistency_wait shorter than request_timeout",
            )
        )
    return found
