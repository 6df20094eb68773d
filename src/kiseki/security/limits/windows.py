"""`Windows`: the sliding windows of many keys, in bounded memory. Used by the limiters; knows no clock.

Time is cut into slots, SLOTS to a window. A key has one number for each slot in which it took units. At slot `now` the
units of the slots `now - SLOTS` to `now` count, and a request is let in if they and its own cost are within the limit.

Why no window ever has more: take any units let in within one window, and the last moment at which some of them were.
All of them lie at most a window before it, so in the SLOTS + 1 slots that counted at that moment, and these were within
the limit then. The price is that a unit counts up to one slot (1/120 of the window) longer than it would have to.

Memory: at most SLOTS + 1 numbers a key and `capacity` keys. Keys whose units have all run out are dropped, two with
each call. A key with units that count is never dropped for another: an outsider with many addresses would set everybody
back to zero. When there is no room, keys that are not known share CROWDS windows instead, each key always the same one;
so they have the limit together, and all who are known keep theirs. A key leaves its shared window only when that is
empty, so it can't take its units twice.
"""

from __future__ import annotations

import hashlib
import secrets
from array import array
from bisect import bisect_left
from collections import OrderedDict
from itertools import islice
from typing import Final, Generic, TypeVar

from kiseki.security.limits.verdict import SLOTS

__all__ = ["CROWDS", "Window", "Windows"]

CROWDS: Final = 1_024

_COUNT_BITS: Final = 24
_COUNT: Final = (1 << _COUNT_BITS) - 1

_Key = TypeVar("_Key", str, int)


class Window:
    """The units of one key. A slot and its number are one integer: `slot << 24 | number`, oldest first."""

    __slots__ = ("_slots", "total")

    def __init__(self) -> None:
        self._slots: array[int] = array("Q")
        self.total = 0
        """Units, after `expire` those that count."""

    def __len__(self) -> int:
        """How many slots it takes memory for."""
        return len(self._slots)

    def expire(self, now: int) -> None:
        """Drops the units that count no more at slot `now`."""
        slots = self._slots
        horizon = (now - SLOTS) << _COUNT_BITS
        if slots and slots[0] < horizon:
            gone = bisect_left(slots, horizon)
            self.total -= sum([number & _COUNT for number in slots[:gone]])
            del slots[:gone]

    def is_idle(self, now: int) -> bool:
        """Whether nothing counts at slot `now`."""
        slots = self._slots
        return not slots or slots[-1] >> _COUNT_BITS < now - SLOTS

    def add(self, now: int, units: int) -> None:
        """Counts units at slot `now`, which is no earlier than any before."""
        slots = self._slots
        if slots and slots[-1] >> _COUNT_BITS == now:
            slots[-1] += units
        else:
            slots.append(now << _COUNT_BITS | units)
        self.total += units

    def give_back(self, slot: int, units: int) -> None:
        """Takes back units that were added at a slot; those that ran out since are nothing to take back."""
        slots = self._slots
        place = bisect_left(slots, slot << _COUNT_BITS)
        if place == len(slots) or slots[place] >> _COUNT_BITS != slot:
            return
        if slots[place] & _COUNT <= units:
            self.total -= slots[place] & _COUNT
            del slots[place]
        else:
            slots[place] -= units
            self.total -= units

    def free_at(self, units: int) -> int:
        """The slot from which so many units fewer count; `units` is at most the total."""
        for number in self._slots:
            units -= number & _COUNT
            if units <= 0:
                return (number >> _COUNT_BITS) + SLOTS + 1
        return self.empty_at()

    def empty_at(self) -> int:
        """The slot from which nothing counts, 0 when nothing does now."""
        return (self._slots[-1] >> _COUNT_BITS) + SLOTS + 1 if self._slots else 0


class _Shelf(Generic[_Key]):
    """Windows in the order of their last use, so that the idle ones are in front."""

    __slots__ = ("_windows",)

    def __init__(self) -> None:
        self._windows: OrderedDict[_Key, Window] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    def get(self, key: _Key) -> Window | None:
        return self._windows.get(key)

    def used(self, key: _Key, window: Window) -> None:
        """To be called when units were added."""
        self._windows[key] = window
        self._windows.move_to_end(key)

    def drop(self, key: _Key) -> None:
        del self._windows[key]

    def sweep(self, now: int) -> None:
        """Drops the first two if they are idle: more than a call can add."""
        windows = self._windows
        for key in windows:
            if windows[key].is_idle(now):
                self._drop_two(now)
            return

    def _drop_two(self, now: int) -> None:
        for key in list(islice(self._windows, 2)):
            if not self._windows[key].is_idle(now):
                return
            del self._windows[key]


class Windows:
    """The windows of at most `capacity` keys, and the shared ones of keys for which there was no room."""

    def __init__(self, *, capacity: int) -> None:
        self._capacity = capacity
        self._own: _Shelf[str] = _Shelf()
        self._crowds: _Shelf[int] = _Shelf()
        # Of this process's own, so that nobody can choose whose window to share.
        self._secret = secrets.token_bytes(16)
        self.crowded = 0
        """How often units were taken from a shared window."""

    def __len__(self) -> int:
        """How many keys have a window of their own."""
        return len(self._own)

    @property
    def crowds(self) -> int:
        """How many shared windows there are now."""
        return len(self._crowds)

    def find(self, key: str, now: int) -> Window | None:
        """The window that counts for a key at slot `now`, None when nothing counts."""
        self._own.sweep(now)
        window = self._own.get(key)
        if window is None:
            if not len(self._crowds):
                return None
            self._crowds.sweep(now)
            window = self._crowds.get(self._crowd(key))
            if window is None:
                return None
        window.expire(now)
        return window

    def add(self, key: str, now: int, units: int) -> Window:
        """Counts units for a key, in the window that `find` gave just now, or a new one."""
        window = self._own.get(key)
        if window is None:
            window = self._newcomer(key, now)
            if window is None:
                return self._add_to_crowd(key, now, units)
        window.add(now, units)
        self._own.used(key, window)
        return window

    def give_back(self, key: str, slot: int, units: int) -> None:
        """Takes back what `add` counted for a key at a slot."""
        window = self._own.get(key)
        if window is None:
            window = self._crowds.get(self._crowd(key))
            if window is not None:
                window.give_back(slot, units)
            return
        window.give_back(slot, units)
        if not window.total:
            self._own.drop(key)

    def _newcomer(self, key: str, now: int) -> Window | None:
        if len(self._own) >= self._capacity:
            return None
        if len(self._crowds):
            shared = self._crowds.get(self._crowd(key))
            if shared is not None and not shared.is_idle(now):
                return None
        return Window()

    def _add_to_crowd(self, key: str, now: int, units: int) -> Window:
        crowd = self._crowd(key)
        window = self._crowds.get(crowd)
        if window is None:
            window = Window()
        window.expire(now)
        window.add(now, units)
        self._crowds.used(crowd, window)
        self.crowded += 1
        return window

    def _crowd(self, key: str) -> int:
        digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8, key=self._secret).digest()
        return int.from_bytes(digest) % CROWDS
