"""The names of files: which are durable, and which changes may still be lost."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .contents import File


@dataclass(slots=True)
class _Change:
    """One change: ``old`` loses the file, ``new`` gains it; a rename does both at once."""

    index: int
    file: File
    old: str | None
    new: str | None
    durable: bool = False

    def apply(self, names: dict[str, File]) -> None:
        """Nothing to do when an earlier change, on which this one builds, was lost."""
        if self.old is not None:
            if names.get(self.old) is not self.file:
                return
            del names[self.old]
        if self.new is not None:
            names[self.new] = self.file

    def is_in(self, directory: str) -> bool:
        """Whether the directory loses or gains a name by this change."""
        paths = (self.old, self.new)
        return any(path and path.rpartition("/")[0] == directory for path in paths)

    def requires(self, earlier: _Change) -> bool:
        """Whether no disk can show this change without the earlier one.

        The history of one file is never reordered, and a name given to another file has been taken
        from the first (a log renamed before its successor is created is not lost).
        """
        return earlier.file is self.file or (earlier.old is not None and earlier.old == self.new)


class Names:
    """Paths to files, as the program sees them (``current``) and as a cut may leave them."""

    def __init__(self) -> None:
        self.current: dict[str, File] = {}
        self._durable: dict[str, File] = {}
        self._pending: list[_Change] = []

    def assume(self, path: str, file: File) -> None:
        """The name was there before the trace began."""
        self.current[path] = self._durable[path] = file

    def bind(self, index: int, path: str, file: File) -> None:
        """The file was created as, or linked to, ``path``."""
        self._add(_Change(index, file, None, path))

    def unlink(self, index: int, path: str, file: File) -> None:
        self._add(_Change(index, file, path, None))

    def rename(self, index: int, old: str, new: str, file: File) -> None:
        self._add(_Change(index, file, old, new))

    def sync_file(self, file: File, begun: int) -> None:
        """A synced file can be found again: the names it was given are durable."""
        self._keep(change for change in self._before(begun) if change.file is file and change.new)

    def sync_directory(self, directory: str, begun: int) -> None:
        """A synced directory holds exactly the names it showed when the sync began."""
        self._keep(change for change in self._before(begun) if change.is_in(directory))

    def survivors(self, chance: float, chooser: random.Random) -> dict[str, File]:
        """The names after the cut, when each undecided change survives with this probability."""
        chosen = [change for change in self._pending if change.durable or chooser.random() < chance]
        names = dict(self._durable)
        for change in self._with_required(chosen):
            change.apply(names)
        return names

    def _add(self, change: _Change) -> None:
        change.apply(self.current)
        self._pending.append(change)

    def _before(self, begun: int) -> Iterator[_Change]:
        return (change for change in self._pending if change.index < begun)

    def _with_required(self, chosen: Iterable[_Change]) -> list[_Change]:
        """The chosen changes and all that they build on, in the order they were made."""
        kept = {change.index for change in chosen}
        for position in range(len(self._pending) - 1, -1, -1):
            change = self._pending[position]
            if change.index in kept:
                kept.update(e.index for e in self._pending[:position] if change.requires(e))
        return [change for change in self._pending if change.index in kept]

    def _keep(self, changes: Iterable[_Change]) -> None:
        """Mark as durable, then fold in up to the first undecided change: the order stays."""
        for change in self._with_required(changes):
            change.durable = True
        settled = next((at for at, change in enumerate(self._pending) if not change.durable), None)
        for change in self._pending[:settled]:
            change.apply(self._durable)
        del self._pending[:settled]
