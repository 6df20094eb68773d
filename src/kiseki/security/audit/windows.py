"""`Windows`: repeats of an event are counted instead of written each, so that a flood can't fill a disk.

Used by the log for what is noted. The first event of a kind, outcome and code from one actor, or else from one address
(/64 of IPv6), is written at once; those of the next 10 seconds become one record with their number. The number of open
windows is bounded: beyond it events share one window for each kind and code, without actor and address.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import lru_cache
from typing import Final

import msgspec

from kiseki.kernel.ports import AuditEvent
from kiseki.security.audit.record import Entry

__all__ = ["Windows", "source_of"]

_OPERATIONS: Final = 8
"""Different operations that a sum names."""
_SHARED: Final = 64
"""Windows for what finds no window of its own: kinds and codes are this program's own, so there are few."""
_SAME: Final = ("actor", "issuer", "subject", "address", "api", "operation", "target", "trace_id", "detail")
_KEY_LENGTH: Final = 64


class _Window:
    __slots__ = ("_bound", "_seen", "count", "ends", "event", "first_at", "last_at", "operations")

    def __init__(self, event: AuditEvent, ends: float, bound: Callable[[AuditEvent], AuditEvent]) -> None:
        self.event = event
        """What all repeats have in common."""
        self.ends = ends
        self._bound = bound
        self._seen: dict[str, int] = {}
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
            different = [name for name, seen in self._seen.items() if hash(getattr(event, name)) != seen]
            if different:
                self.event = msgspec.structs.replace(self.event, **dict.fromkeys(different))
                for name in different:
                    del self._seen[name]
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


class Windows:
    """Counts repeats. Pure: time is given to it."""

    def __init__(self, *, seconds: float, most: int, bound: Callable[[AuditEvent], AuditEvent]) -> None:
        """`most` windows are open at a time. `bound` cuts and masks what is kept of an event."""
        self._bound = bound
        self._seconds = seconds
        self._most = most
        # All last equally long, so the oldest is the first to end.
        self._open: OrderedDict[tuple[str | None, ...], _Window] = OrderedDict()
        self._shared: OrderedDict[tuple[str | None, ...], _Window] = OrderedDict()
        self.coalesced = 0
        """Events that were counted instead of written."""

    def __len__(self) -> int:
        return len(self._open) + len(self._shared)

    def add(self, event: AuditEvent, *, at: datetime, now: float) -> Entry | None:
        """What is to be written at once, or None for an event that is counted. `now` is monotonic; first `ended`."""
        source = event.actor or source_of(event.address and event.address[:_KEY_LENGTH])
        key = (event.kind, event.outcome, event.code, source)
        window = self._open.get(key)
        if window is None:
            if len(self._open) < self._most:
                event = self._bound(event)
                self._open[key] = _Window(event, now + self._seconds, self._bound)
                return Entry(event=event, at=at)
            window = self._share(event, now)
        window.add(event, at)
        self.coalesced += 1
        return None

    def _share(self, event: AuditEvent, now: float) -> _Window:
        key: tuple[str | None, ...] = (event.kind, event.outcome, event.code)
        window = self._shared.get(key)
        if window is None:
            if len(self._shared) >= _SHARED:
                key = ("audit.others", event.outcome, None)
                event = AuditEvent(kind="audit.others", outcome=event.outcome)
                window = self._shared.get(key)
            if window is None:
                window = self._shared[key] = _Window(event, now + self._seconds, self._bound)
        return window

    def ended(self, *, at: datetime, now: float) -> Iterator[Entry]:
        """Closes the windows whose time is over, and gives the sums of those that had repeats."""
        for windows in (self._open, self._shared):
            while windows:
                key, window = next(iter(windows.items()))
                if window.ends > now:
                    break
                del windows[key]
                if window.count:
                    yield _named(key, window.total(at))

    def all(self, *, at: datetime) -> Iterator[Entry]:
        """Closes every window: at the end of the log."""
        yield from self.ended(at=at, now=float("inf"))

    def next_end(self) -> float | None:
        """When the next window ends (monotonic)."""
        ends = [next(iter(windows.values())).ends for windows in (self._open, self._shared) if windows]
        return min(ends) if ends else None


def _named(key: tuple[str | None, ...], entry: Entry) -> Entry:
    """In the window of all others, kinds differ."""
    if key[0] != "audit.others" or entry.event.kind == "audit.others":
        return entry
    return msgspec.structs.replace(entry, event=msgspec.structs.replace(entry.event, kind="audit.others", code=None))


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
