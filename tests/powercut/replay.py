"""What the disk holds after the power is cut at one point of a trace.

The model, close to ext4 with ordered data and never kinder:

- Contents. A change to a file is durable once a sync of that file, begun after the change, has
  ended. Of the other changes ``Mode`` decides which survive. Bytes that a surviving size covers but
  no surviving write filled are zero.
- Names. Creating, linking or renaming a file becomes durable with a sync of that file or of the
  directory that holds the name; unlinking with a sync of the directory. Until then each may or may
  not have happened. Changes that depend on each other keep their order (see ``names``), the others
  need not: ext4 would keep them all in order, which hides a missing sync of the directory.
- Directories themselves are durable at once.
- A sync that failed or had not ended makes nothing durable.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from .contents import File, changes_of, survivors
from .names import Names
from .records import ACK, Operation, Record, Trace, TraceError


class Mode(Enum):
    """What happens to changes that no completed sync covers."""

    DROP = "drop"
    """All are lost: the disk never saw them."""
    SUBSET = "subset"
    """Some calls survive whole, others not at all, whatever their order."""
    TORN = "torn"
    """Each 512-byte sector has seen some of its changes, so calls are torn and reordered."""
    KEEP = "keep"
    """All survive: the process died but the machine did not. Equals the directory itself."""


POWER_CUTS: Final = (Mode.DROP, Mode.SUBSET, Mode.TORN)


@dataclass(frozen=True, slots=True)
class Image:
    """The state of the watched directory after one cut."""

    cut: int
    mode: Mode
    files: Mapping[str, bytes]
    directories: frozenset[str]
    acknowledged: list[str]
    """Every line written to the ACK file before the cut: promises the disk has to keep."""

    def write_to(self, directory: Path) -> None:
        """Create the files below ``directory``, which must be new or empty.

        Raises:
            FileExistsError: it holds something that a power cut would not have left.
        """
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise FileExistsError(
                f"{directory} is not empty; an image needs a directory of its own",
            )
        for name in self.directories:
            (directory / name).mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            target = directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def images(trace: Trace, cuts: Iterable[int], mode: Mode, seed: int) -> Iterator[Image]:
    """The image for each cut, in ascending order, in one pass over the trace.

    A cut ``k`` comes after the first ``k`` records. The choices of an image depend on (seed, mode,
    cut) only, so one failing cut can be repeated alone.

    Raises:
        TraceError: the trace holds something that cannot be replayed faithfully.
    """
    disk = _Disk(trace.base)
    position = 0
    for cut in sorted(cuts):
        if not 0 <= cut <= len(trace):
            raise ValueError(f"the cut {cut} is outside of the trace (0 to {len(trace)})")
        for index in range(position, cut):
            disk.apply(index, trace.records[index])
        position = cut
        yield disk.image(cut, mode, random.Random(f"{seed}:{mode.value}:{cut}"))


class _Disk:
    """Everything known up to one record: what is durable, and what is still only in memory."""

    def __init__(self, base: Path | None) -> None:
        self._names = Names()
        self._by_inode: dict[int, File] = {}
        self._begun: dict[tuple[int, int, int], int] = {}
        self._directories: set[str] = set()
        self._marks = bytearray()
        if base is not None:
            self._assume(base)

    def apply(self, index: int, record: Record) -> None:
        operation = record.operation
        if record.path == ACK:
            self._marks += record.data
        elif operation is Operation.OPAQUE:
            raise TraceError(f"record {index}: {record.other} on {record.path} cannot be replayed")
        elif operation is Operation.CREATE:
            self._create(index, record)
        elif operation in (Operation.WRITE, Operation.TRUNCATE, Operation.ALLOCATE):
            self._file(index, record).pending.extend(changes_of(index, record))
        elif operation in (Operation.SYNC_BEGIN, Operation.SYNC_END):
            self._sync(index, record)
        elif operation is Operation.UNLINK:
            self._names.unlink(index, record.path, self._file(index, record))
        elif operation is Operation.RENAME and record.path in self._directories:
            raise TraceError(
                f"record {index}: renaming a directory ({record.path}) is not modelled",
            )
        elif operation is Operation.RENAME:
            self._names.rename(index, record.path, record.other, self._file(index, record))
        elif operation is Operation.LINK:
            self._names.bind(index, record.other, self._file(index, record))
        elif operation is Operation.MKDIR:
            self._directories.add(record.path)
        elif operation is Operation.RMDIR:
            self._directories.discard(record.path)

    def image(self, cut: int, mode: Mode, chooser: random.Random) -> Image:
        def chance() -> float:
            """How likely a change survives: the extremes often, as files differ most in them."""
            if mode in (Mode.DROP, Mode.KEEP):
                return 0.0 if mode is Mode.DROP else 1.0
            return chooser.choice((0.0, 0.1, 0.5, 0.9, 1.0))

        torn = mode is Mode.TORN
        names = self._names.survivors(chance(), chooser)
        files = dict.fromkeys(names.values())
        contents = {file: survivors(file, chance(), chooser, torn=torn) for file in files}
        return Image(
            cut=cut,
            mode=mode,
            files={name: contents[file] for name, file in names.items()},
            directories=frozenset(self._directories),
            acknowledged=self._marks[: self._marks.rfind(b"\n") + 1].decode().split("\n")[:-1],
        )

    def _assume(self, base: Path) -> None:
        for path in sorted(base.rglob("*")):
            name = path.relative_to(base).as_posix()
            if path.is_dir():
                self._directories.add(name)
            else:
                self._names.assume(name, File(bytearray(path.read_bytes())))

    def _create(self, index: int, record: Record) -> None:
        """Opening a file that exists already is recorded like creating it; only the inode tells."""
        existing = self._names.current.get(record.path)
        if existing is not None and self._by_inode.get(record.inode) is existing:
            return
        if existing is not None and existing not in self._by_inode.values():
            self._by_inode[record.inode] = existing
            return
        file = File(bytearray())
        self._by_inode[record.inode] = file
        self._names.bind(index, record.path, file)

    def _file(self, index: int, record: Record) -> File:
        file = self._by_inode.get(record.inode)
        if file is None:
            file = self._names.current.get(record.path)
            if file is None or file in self._by_inode.values():
                raise TraceError(
                    f"record {index}: {record.operation.name} on {record.path}, but its creation is"
                    " not in the trace; all that touches the directory has to run under the shim"
                )
            self._by_inode[record.inode] = file
        return file

    def _sync(self, index: int, record: Record) -> None:
        thread = (record.process, record.thread, record.inode)
        if record.operation is Operation.SYNC_BEGIN:
            self._begun[thread] = index
            return
        begun = self._begun.pop(thread)
        if record.path == "." or record.path in self._directories:
            self._names.sync_directory("" if record.path == "." else record.path, begun)
        else:
            file = self._file(index, record)
            file.sync(begun)
            self._names.sync_file(file, begun)
