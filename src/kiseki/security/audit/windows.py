"""`Windows`: repeats of an event are counted instead of written each, so that a flood can't fill a disk.

Used by the log for what is noted. The first event of a kind, outcome and code from one actor, or else from one address
(/64 of IPv6), is written at once; those of the next 10 seconds become one record with their number. The number of open
windows is bounded: beyond it events share one window for each kind and code, without actor and address.

The bound holds for each kind, and apart for events with an actor, with only an address, and with neither: whoever has
many addresses, and no token, can't take the windows of those who have one. What happens once for each actor and is
needed to read all else, `actor.seen`, is neither counted nor takes a window.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import lru_cache
from typing import Final, TypeAlias

import msgspec

from kiseki.kernel.ports import AuditEvent
from kiseki.security.audit.record import Entry

__all__ = ["Windows", "source_of"]

_EACH: Final = frozenset({"actor.seen"})
"""Kinds of which each is written: only these say who a pseudonym stands for."""
_OTHERS: Final = "audit.others"
_OPERATIONS: Final = 8
"""Different operations that a sum names."""
_KINDS: Final = 16
"""Kinds with a bound of their own at a time; further ones share one."""
_SHARED: Final = 64
"""Windows for what finds no window of its own: kinds and codes are this program's own, so there are few."""
_SAME: Final = ("actor", "issuer", "subject", "address", "api", "operation", "target", "trace_id", "detail")
_KEY_LENGTH: Final = 64
_Key: TypeAlias = tuple[str | None, ...]


class _Window:
    __slots__ = ("_bound", "_network", "_seen", "budget", "count", "ends", "event", "first_at", "last_at", "operations")

    def __init__(
        self, event: AuditEvent, ends: float, bound: Callable[[AuditEvent], AuditEvent], budget: str = ""
    ) -> None:
        self.event = event
        """What all repeats have in common."""
        self.ends = ends
        self.budget = budget
        """Whose bound it counts against."""
        self._bound = bound
        self._seen: dict[str, int] = {}
        self._network: str | None = None
        """The /64 that all repeats came from, once their addresses differed."""
        self.count = 0
        self.first_at: datetime | None = None
        self.last_at: datetime | None = None
        self.operations: dict[int, str] = {}

    def add(self, event: AuditEvent, at: datetime) -> None:
        # Of repeats only hashes are looked at: bounding and masking each would be what a flood is after.
        if not self.count:
            self.event, self.first_at = self._bound(event), at
            self._seen = {name: hash(value) for name in _SAME if (value := getattr(event, name)) is not None}
        else:
            if self._network is not None and _source(event) != self._network:
                self.event, self._network = msgspec.structs.replace(self.event, address=None), None
            different = [name for name, seen in self._seen.items() if hash(getattr(event, name)) != seen]
            if different:
                common: dict[str, str | None] = dict.fromkeys(different)
                for name in different:
                    del self._seen[name]
                if "address" in common:
                    common["address"] = self._network = _common_source(self.event.address, event.address)
                self.event = self._bound(msgspec.structs.replace(self.event, **common))
        self.count += 1
        self.last_at = at
        if event.operation is not None and len(self.operations) < _OPERATIONS:
            mark = hash(event.operation)
            if mark not in self.operations:
                self.operations[mark] = self._bound(event).operation or ""

    def total(self, at: datetime) -> Entry:
        several = self.event.operation is None and len(self.operations) > 1
        return Entry(
            event=self.event,
            at=at,
            count=self.count,
            first_at=self.first_at,
            last_at=self.last_at,
            operations=tuple(self.operations.values()) if several else (),
        )


class _Group:
    """Windows of events that are told apart by the same: their actor, their address, or nothing."""

    def __init__(self, *, seconds: float, most: int, bound: Callable[[AuditEvent], AuditEvent]) -> None:
        self._bound = bound
        self._seconds = seconds
        self._most = most
        # All last equally long, so the oldest is the first to end.
        self._open: OrderedDict[_Key, _Window] = OrderedDict()
        self._shared: OrderedDict[_Key, _Window] = OrderedDict()
        self._taken: Counter[str] = Counter()
        """Open windows of each kind that has a bound of its own."""

    def __len__(self) -> int:
        return len(self._open) + len(self._shared)

    def add(self, event: AuditEvent, source: str | None, *, at: datetime, now: float) -> Entry | None:
        key = (event.kind, event.outcome, event.code, source)
        window = self._open.get(key)
        if window is None:
            budget = event.kind if event.kind in self._taken or len(self._taken) < _KINDS else _OTHERS
            if self._taken[budget] < self._most:
                event = self._bound(event)
                self._open[key] = _Window(event, now + self._seconds, self._bound, budget)
                self._taken[budget] += 1
                return Entry(event=event, at=at)
            window = self._share(event, now)
        window.add(event, at)
        return None

    def _share(self, event: AuditEvent, now: float) -> _Window:
        key: _Key = (event.kind, event.outcome, event.code)
        window = self._shared.get(key)
        if window is None:
            if len(self._shared) >= _SHARED:
                key = (_OTHERS, event.outcome, None)
                event = AuditEvent(kind=_OTHERS, outcome=event.outcome)
                window = self._shared.get(key)
            if window is None:
                window = self._shared[key] = _Window(event, now + self._seconds, self._bound)
        return window

    def ended(self, *, at: datetime, now: float) -> Iterator[Entry]:
        for windows in (self._open, self._shared):
            while windows:
                key, window = next(iter(windows.items()))
                if window.ends > now:
                    break
                del windows[key]
                if windows is self._open:
                    self._taken[window.budget] -= 1
                    if not self._taken[window.budget]:
                        del self._taken[window.budget]
                if window.count:
                    yield _named(key, window.total(at))

    def next_end(self) -> float | None:
        ends = [next(iter(windows.values())).ends for windows in (self._open, self._shared) if windows]
        return min(ends) if ends else None


class Windows:
    """Counts repeats. Pure: time is given to it."""

    def __init__(self, *, seconds: float, most: int, bound: Callable[[AuditEvent], AuditEvent]) -> None:
        """`most` windows of a kind are open at a time: for actors, for addresses, and for what has neither.

        `bound` cuts and masks what is kept of an event.
        """
        self._bound = bound
        self._of_actors = _Group(seconds=seconds, most=most, bound=bound)
        self._of_addresses = _Group(seconds=seconds, most=most, bound=bound)
        self._of_nobody = _Group(seconds=seconds, most=most, bound=bound)
        self._groups = (self._of_actors, self._of_addresses, self._of_nobody)
        self.coalesced = 0
        """Events that were counted instead of written."""

    def __len__(self) -> int:
        return sum(len(group) for group in self._groups)

    def add(self, event: AuditEvent, *, at: datetime, now: float) -> Entry | None:
        """What is to be written at once, or None for an event that is counted. `now` is monotonic; first `ended`."""
        if event.kind in _EACH:
            return Entry(event=self._bound(event), at=at)
        if event.actor:
            entry = self._of_actors.add(event, event.actor, at=at, now=now)
        elif event.address:
            entry = self._of_addresses.add(event, _source(event), at=at, now=now)
        else:
            entry = self._of_nobody.add(event, None, at=at, now=now)
        if entry is None:
            self.coalesced += 1
        return entry

    def ended(self, *, at: datetime, now: float) -> Iterator[Entry]:
        """Closes the windows whose time is over, and gives the sums of those that had repeats."""
        for group in self._groups:
            yield from group.ended(at=at, now=now)

    def all(self, *, at: datetime) -> Iterator[Entry]:
        """Closes every window: at the end of the log."""
        yield from self.ended(at=at, now=float("inf"))

    def next_end(self) -> float | None:
        """When the next window ends (monotonic)."""
        return min((end for group in self._groups if (end := group.next_end()) is not None), default=None)


def _named(key: tuple[str | None, ...], entry: Entry) -> Entry:
    """In the window of all others, kinds differ."""
    if key[0] != _OTHERS or entry.event.kind == _OTHERS:
        return entry
    return msgspec.structs.replace(entry, event=msgspec.structs.replace(entry.event, kind=_OTHERS, code=None))


def _source(event: AuditEvent) -> str | None:
    return source_of(event.address and event.address[:_KEY_LENGTH])


def _common_source(address: str | None, other: str | None) -> str | None:
    """The source that both addresses are of, if there is one."""
    source = source_of(address and address[:_KEY_LENGTH])
    return source if source is not None and source == source_of(other and other[:_KEY_LENGTH]) else None


@lru_cache(maxsize=1024)
def source_of(address: str | None) -> str | None:
    """What counts as one client: an IPv4 address, or the /64 of an IPv6 one."""
    if address is None:
        return None
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0].strip("[]"))
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
