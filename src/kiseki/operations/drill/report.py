"""`DrillReport`: what a drill measured, against what was promised. Printed, and kept where backups are."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

import msgspec

__all__ = ["DRILLS", "TARGETS", "DrillReport", "Targets", "in_words"]


DRILLS: Final = "drills"
"""Where reports are kept, in the place of the journal's backups."""


class Targets(msgspec.Struct, frozen=True, kw_only=True):
    """What was promised, in seconds."""

    detection: float = 300.0
    rpo: float = 300.0
    rto: float = 3_600.0


TARGETS: Final = Targets()


class DrillReport(msgspec.Struct, frozen=True, kw_only=True):
    """One drill. Seconds, unless it says otherwise."""

    at: datetime
    """When the system was destroyed (UTC)."""
    kiseki: str
    store: str
    events: int
    """In the journal when it was destroyed, as far as they were acknowledged."""
    clients: int
    protection_interval: float
    waited: float
    """The random time under load, with protection running, before it was destroyed."""
    detection: float
    """From the destruction until the probe said so."""
    rpo: float
    """From the oldest acknowledged command that is lost to the destruction; 0 when none is."""
    rto: float
    """From the destruction until the probe found the recovered system ready."""
    phases: Mapping[str, float]
    acknowledged: int
    """Commands under load before the destruction."""
    lost: int
    """Of these, commands that the recovered journal lacks."""
    recovered_events: int
    sound: bool
    """The recovered journal was read whole: checksums, numbers, claims."""
    projections_behind: int
    proved: str
    """What was asked of the recovered system."""
    targets: Targets = TARGETS

    @property
    def passed(self) -> bool:
        """Whether everything promised was kept."""
        within = (
            self.detection <= self.targets.detection and self.rpo <= self.targets.rpo and self.rto <= self.targets.rto
        )
        return within and self.sound and self.projections_behind == 0


def in_words(report: DrillReport) -> str:
    """The report for people."""
    targets = report.targets
    lines = [
        f"Disaster drill on {report.store}, {report.at:%Y-%m-%d %H:%M:%S} UTC, kiseki {report.kiseki}",
        f"  journal            {report.events:,} events; {report.clients} clients; protection every "
        f"{report.protection_interval:g} s",
        f"  destroyed          after {report.waited:,.1f} s under load: processes killed, everything they had deleted",
        _line("detection", report.detection, targets.detection, "by a probe that runs apart"),
        _line(
            "RPO",
            report.rpo,
            targets.rpo,
            f"{report.lost:,} of {report.acknowledged:,} commands acknowledged under load are lost",
        ),
        _line(
            "RTO",
            report.rto,
            targets.rto,
            ", ".join(f"{name} {seconds:,.1f} s" for name, seconds in report.phases.items()),
        ),
        f"  recovered          {report.recovered_events:,} events, {'sound' if report.sound else 'DAMAGED'}; "
        f"read models {report.projections_behind:,} commits behind; {report.proved}",
        f"  result             {'passed' if report.passed else 'FAILED'}",
    ]
    return "\n".join(lines)


def _line(name: str, seconds: float, target: float, how: str) -> str:
    verdict = "kept" if seconds <= target else "MISSED"
    return f"  {name:<18} {seconds:,.1f} s (target {target:,.0f} s, {verdict}): {how}"
