"""Failover: planned (stop, drain, verify, switch: nothing is lost), forced (wait the lease out), unfenced (neither).

Used by `kiseki dr failover`. Each step can be done again, so a run that was killed is gone on with by the same command.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from kiseki.journal.lease.handing_over import HandingOver
from kiseki.journal.port import START, Position
from kiseki.kernel.errors import KisekiError, Unavailable
from kiseki.operations.dr.replication import FailoverRefused, Replication

__all__ = ["FailoverReport", "Record", "Tell", "forced_failover", "planned_failover", "unfenced_failover"]

Tell = Callable[[str], None]
"""Hears what is being done, a line each."""
Record = Callable[[str], Awaitable[None]]
"""Records in the audit log what is about to be done. Raises AuditUnavailable, and then it is not done."""

UNFENCED: Final = (
    "UNFENCED: no lease keeps the other site from writing; if it lives, both acknowledge, and what it writes is lost"
)


class FailoverReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was done."""

    mode: str
    """planned, forced or unfenced."""
    site: str
    term: int
    """0 without a lease."""
    waited_seconds: float
    """From the moment when nobody was granted the lease any more until nobody had it."""
    compared_commits: int | None
    """None: the other site could not be compared with."""
    unknown: tuple[str, ...]
    """What could not be known, a line each: what may be lost."""


async def planned_failover(
    handing: HandingOver, replication: Replication, *, site: str, tell: Tell, record: Record
) -> FailoverReport:
    """Hands writing over to a site, whose journal is proved to hold everything. When that can't be proved the site that
    wrote goes on. Raises FailoverRefused, HandingOverRefused, LeaseBusy, Unavailable."""
    resumes = await handing.under_way()
    since: Position = START
    if not resumes:
        await replication.check()
        since = await replication.mark()
    await record(f"planned, to {site}")
    begun = await handing.begin(site)
    tell(_begun(handing, begun.holder))
    term = begun.term + 1
    async with handing.alive():
        waited = await _waited(handing, tell)
        try:
            tell(await replication.fence(term))
            verified = await replication.verify(START if handing.resumed else since)
            tell(f"compared {verified.commits:,} commits, nothing differs; {verified.detail}")
        except (KisekiError, OSError) as problem:
            back = await handing.back()
            raise FailoverRefused(
                f"{problem}; {back.holder} writes on (term {back.term}), nothing was lost"
            ) from problem
        await _switched(replication, term, tell, record, site=site, clean=handing.all_let_go)
    await handing.finish()
    return FailoverReport(
        mode="planned",
        site=site,
        term=term,
        waited_seconds=waited,
        compared_commits=verified.commits,
        unknown=(),
    )


async def forced_failover(
    handing: HandingOver, replication: Replication, *, site: str, tell: Tell, record: Record
) -> FailoverReport:
    """Lets a site write without asking the other one, once that one can't any more. What was not replicated is lost to
    it, until `failback`. Raises FailoverRefused, HandingOverRefused, LeaseBusy, Unavailable."""
    await record(f"forced, to {site}")
    begun = await handing.begin(site)
    tell(_begun(handing, begun.holder))
    term = begun.term + 1
    async with handing.alive():
        waited = await _waited(handing, tell)
        unknown: list[str] = []
        compared = None
        if not await replication.promoted():
            compared = await _compared_if_possible(replication, term, unknown, tell)
        await _switched(replication, term, tell, record, site=site, clean=False)
    await handing.finish()
    return FailoverReport(
        mode="forced", site=site, term=term, waited_seconds=waited, compared_commits=compared, unknown=tuple(unknown)
    )


async def unfenced_failover(replication: Replication, *, site: str, tell: Tell, record: Record) -> FailoverReport:
    """Promotes the other store and hopes that nobody writes to the first one. Raises FailoverRefused, Unavailable."""
    tell(UNFENCED)
    await record(f"UNFENCED, to {site or 'the other site'}: no lease keeps the site that wrote from going on")
    unknown = [UNFENCED]
    if not await replication.promoted():
        unknown.append(await replication.newest())
    tell(await replication.promote(clean=False))
    await replication.admit(0)
    return FailoverReport(
        mode="unfenced", site=site, term=0, waited_seconds=0.0, compared_commits=None, unknown=tuple(unknown)
    )


def _begun(handing: HandingOver, holder: str) -> str:
    begun = "goes on with a failover that had begun" if handing.resumed else f"{holder} is granted the lease no more"
    return f"{begun}; waits until none of its processes has it"


async def _waited(handing: HandingOver, tell: Tell) -> float:
    told: list[int] = []

    def waits(left: float, writers: int) -> None:
        if not told or told[-1] != writers:
            told.append(writers)
            tell(f"{writers} {'process has' if writers == 1 else 'processes have'} it, for {left:.1f} s at most")

    waited = await handing.wait(waits)
    tell(f"nobody writes, after {waited:.1f} s")
    return waited


async def _compared_if_possible(replication: Replication, term: int, unknown: list[str], tell: Tell) -> int | None:
    """Closes and compares the store that was written, if it can be reached; else says what nobody knows."""
    try:
        tell(await replication.fence(term))
        verified = await replication.verify(await replication.mark())
    except (Unavailable, FailoverRefused) as problem:
        unknown.append(f"what was not replicated is not known: {problem}")
        unknown.append(await replication.newest())
        for line in unknown:
            tell(line)
        return None
    tell(f"the other store is reachable, and everything is here: {verified.detail}")
    return verified.commits


async def _switched(replication: Replication, term: int, tell: Tell, record: Record, *, site: str, clean: bool) -> None:
    await record(f"promoting the store of {site}, term {term}")
    tell(await replication.promote(clean=clean))
    await replication.admit(term)
