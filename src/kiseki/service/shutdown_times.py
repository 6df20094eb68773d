"""How long each kind of process takes to end at most, phase by phase. Used by `process` and `supervisor`, which end in
these times, and by `checks`, which compares their sum with what the platform gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from kiseki.service.kinds import Parts
from kiseki.service.lifecycle import Phase
from kiseki.service.settings import Settings

__all__ = ["KILL_MARGIN", "Share", "api_process_time", "phase_times", "shutdown_shares", "updater_process_time"]

KILL_MARGIN: Final = 5.0
"""Seconds beyond its own times that a supervisor gives a process to end, before it is killed."""
_SETTING_OUT: Final = 1.0
"""The drain delay ends by itself; this is for an event loop that is slow to say so."""
_OF_APIS: Final = frozenset(
    {Phase.BEFORE_SERVICE_UNBIND, Phase.SERVICE_UNBIND, Phase.SERVICE_REQUESTS_DONE, Phase.SERVICE_STOP}
)


class Share(NamedTuple):
    """One part of the longest shutdown: whose time it is, by the setting that gives it, and its seconds."""

    setting: str
    seconds: float


def phase_times(settings: Settings) -> Mapping[Phase, float]:
    """The seconds after which a task of a phase is no longer waited for, in one process."""
    return {
        Phase.BEFORE_SERVICE_UNBIND: settings.drain_delay + _SETTING_OUT,
        Phase.SERVICE_UNBIND: settings.unbind_timeout,
        Phase.SERVICE_REQUESTS_DONE: settings.requests_done_timeout,
        Phase.SERVICE_STOP: settings.stop_timeout,
        Phase.BEFORE_CLUSTER_SHUTDOWN: settings.projections_timeout,
        Phase.BEFORE_SYSTEM_TERMINATE: settings.flush_timeout,
        Phase.SYSTEM_TERMINATE: settings.close_timeout,
    }


def shutdown_shares(settings: Settings, parts: Parts) -> Sequence[Share]:
    """What the longest shutdown of such a process is made of, with `--workers` that of the supervisor and all below it.

    A phase in which this kind of process has nothing to do takes no time and is left out.
    """
    if settings.workers == 1 or not parts.apis:
        return _process(settings, parts)
    shares = [*_process(settings, parts.without_updater), Share("a worker that hangs", KILL_MARGIN)]
    if parts.updater:
        # The updater ends when the workers have, so that it sees what they wrote last.
        shares += [*_process(settings, Parts(updater=True)), Share("an updater that hangs", KILL_MARGIN)]
    return [*shares, Share("close_timeout", settings.close_timeout)]


def api_process_time(settings: Settings, parts: Parts) -> float:
    """Seconds in which a worker of these parts has ended, unless it hangs."""
    return sum(share.seconds for share in _process(settings, parts))


def updater_process_time(settings: Settings) -> float:
    """Seconds in which an updater that runs alone has ended, unless it hangs."""
    return sum(share.seconds for share in _process(settings, Parts(updater=True)))


def _process(settings: Settings, parts: Parts) -> Sequence[Share]:
    named = {
        Phase.BEFORE_SERVICE_UNBIND: Share("drain_delay", settings.drain_delay),
        Phase.SERVICE_UNBIND: Share("unbind_timeout", settings.unbind_timeout),
        Phase.SERVICE_REQUESTS_DONE: Share("requests_done_timeout", settings.requests_done_timeout),
        Phase.SERVICE_STOP: Share("stop_timeout", settings.stop_timeout),
        Phase.BEFORE_CLUSTER_SHUTDOWN: Share("projections_timeout", settings.projections_timeout),
        Phase.BEFORE_SYSTEM_TERMINATE: Share("flush_timeout", settings.flush_timeout),
        Phase.SYSTEM_TERMINATE: Share("close_timeout", settings.close_timeout),
    }
    return [share for phase, share in named.items() if phase in phases_of(parts)]


def phases_of(parts: Parts) -> frozenset[Phase]:
    """The phases in which a process of these parts has something to do."""
    phases = {Phase.BEFORE_SYSTEM_TERMINATE, Phase.SYSTEM_TERMINATE}
    if parts.apis:
        phases |= _OF_APIS
    if parts.updater:
        phases.add(Phase.BEFORE_CLUSTER_SHUTDOWN)
    return frozenset(phases)
