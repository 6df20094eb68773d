"""`kiseki journal export` and `import`: files that appear whole or not at all, pipes, and what people read."""

from __future__ import annotations

import asyncio
import gzip
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kiseki.cli.transfer import export, import_
from kiseki.journal.memory import MemoryJournal
from kiseki.journal.port import CorruptJournal, FeedPage, JournalUnavailable, Position
from kiseki.journal.transfer.file import new_file
from kiseki.journal.transfer.transferable import (
    HeldClaim,
    TransferableJournal,
    TransferFailed,
    TransferFileDamaged,
)
from kiseki.testing.journal_conformance import SetClock, encoded, metadata
from tests.integration.journal.transfer_parts import content, exported, fill, parsed, sqlite

Opened = Callable[[], AbstractAsyncContextManager[TransferableJournal]]


@pytest.fixture
def journal() -> MemoryJournal:
    """A journal with something in it."""
    journal = MemoryJournal(clock=SetClock())
    asyncio.run(fill(journal))
    return journal


def opening(journal: TransferableJournal) -> Opened:
    @asynccontextmanager
    async def opened() -> AsyncIterator[TransferableJournal]:
        yield journal

    return opened


def names_in(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir())


def test_a_journal_goes_to_a_file_and_back(
    journal: MemoryJournal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "journal.jsonl"
    export(file, opened=opening(journal), force=False, json=False)
    said = capsys.readouterr()
    assert said.out.startswith("exported 35 commits, 69 events, 7 streams, 28 claims, 7 idempotency records (digest ")
    assert said.err == ""
    assert names_in(tmp_path) == ["journal.jsonl"]
    assert file.stat().st_mode & 0o777 == 0o600
    assert content(file.read_bytes()) == content(asyncio.run(exported(journal)))
    target = MemoryJournal(clock=SetClock())
    import_(file, opened=opening(target), json=False)
    said = capsys.readouterr()
    assert said.out.startswith("imported and compared 35 commits, 69 events")
    assert said.out.endswith("; 35 commits were written by this run\n")
    assert content(asyncio.run(exported(target))) == content(file.read_bytes())
    import_(file, opened=opening(target), json=True)
    assert msgspec.json.decode(capsys.readouterr().out) == {
        "commits": 35,
        "events": 69,
        "streams": 7,
        "claims": 28,
        "idempotencyRecords": 7,
        "digest": parsed(file.read_bytes())[-1]["digest"],
        "written": 0,
        "alreadyThere": 35,
    }


def test_a_name_that_ends_in_gz_is_compressed(
    journal: MemoryJournal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "journal.jsonl.gz"
    export(file, opened=opening(journal), force=False, json=True)
    summary = msgspec.json.decode(capsys.readouterr().out)
    assert (summary["commits"], summary["appendedMeanwhile"]) == (35, False)
    packed = file.read_bytes()
    assert packed[4:10] == b"\x00\x00\x00\x00\x02\xff"  # neither a time nor a system
    assert b"journal" not in packed[:100]
    assert content(gzip.decompress(packed)) == content(asyncio.run(exported(journal)))
    target = MemoryJournal(clock=SetClock())
    import_(file, opened=opening(target), json=False)
    assert content(asyncio.run(exported(target))) == content(gzip.decompress(packed))


def test_a_file_that_is_there_stays_unless_it_may_be_replaced(journal: MemoryJournal, tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    file.write_text("precious")
    with pytest.raises(TransferFailed, match=r"is there already; .* --force"):
        export(file, opened=opening(journal), force=False, json=False)
    assert file.read_text() == "precious"
    link = tmp_path / "link"
    link.symlink_to(file)
    export(link, opened=opening(journal), force=True, json=False)
    assert link.is_symlink()
    assert content(file.read_bytes()) == content(asyncio.run(exported(journal)))
    assert names_in(tmp_path) == ["journal.jsonl", "link"]


def test_a_file_that_comes_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(link: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    for links_work in (True, False):
        file = tmp_path / "journal.jsonl"
        if not links_work:
            monkeypatch.setattr(Path, "hardlink_to", refuse)
        with pytest.raises(TransferFailed, match="is there already"), new_file(file, replace=False):
            file.write_text("theirs")
        assert file.read_text() == "theirs"
        assert names_in(tmp_path) == ["journal.jsonl"]
        file.unlink()
    with new_file(file, replace=False) as output:
        output.write(b"ours")
    assert file.read_text() == "ours"


@pytest.mark.parametrize("name", ["file", "file.gz"])
@pytest.mark.parametrize("replace", [False, True])
def test_a_file_is_durable_before_it_has_its_name_and_then_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, replace: bool
) -> None:
    synced: list[tuple[bool, bool]] = []
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        whole = not stat.S_ISREG(os.fstat(descriptor).st_mode) or os.fstat(descriptor).st_size > 20
        synced.append((whole, (tmp_path / name).exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    with new_file(tmp_path / name, replace=replace) as output:
        output.write(b"some words that are long enough")
    assert synced == [(True, False), (True, True)]


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_regular_file_is_not_written_to(journal: MemoryJournal, tmp_path: Path, force: bool) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, Path("/dev/null"), tmp_path / "pipe"):
        with pytest.raises(TransferFailed, match="is no regular file; write to standard output"):
            export(path, opened=opening(journal), force=force, json=False)
    assert Path("/dev/null").is_char_device()


def test_a_file_that_cannot_be_made_is_one_line(journal: MemoryJournal, tmp_path: Path) -> None:
    with pytest.raises(TransferFailed, match=r"nowhere/file can't be written: no such file or directory; nothing"):
        export(tmp_path / "nowhere" / "file", opened=opening(journal), force=False, json=False)
    with pytest.raises(TransferFailed, match="can't be written: file name too long"):
        export(tmp_path / ("x" * 300), opened=opening(journal), force=False, json=False)
    with pytest.raises(TransferFailed, match=r"nowhere can't be read: no such file or directory"):
        import_(tmp_path / "nowhere", opened=opening(journal), json=False)
    with pytest.raises(TransferFailed, match="can't be read: is a directory"):
        import_(tmp_path, opened=opening(journal), json=False)


class Failing(MemoryJournal):
    """Fails on the second page."""

    error: BaseException = CorruptJournal("the commit of Thing-1 at sequence number 1 is damaged")

    async def feed(self, after: Position, *, limit: int = 500) -> FeedPage:
        if after:
            raise self.error
        return await super().feed(after, limit=limit)


@pytest.mark.parametrize("name", ["file", "file.gz"])
@pytest.mark.parametrize("error", [CorruptJournal("damaged"), JournalUnavailable("gone"), KeyboardInterrupt()])
def test_an_export_that_fails_leaves_nothing(tmp_path: Path, name: str, error: BaseException) -> None:
    failing = Failing(clock=SetClock())
    failing.error = error
    asyncio.run(fill(failing))
    with pytest.raises(type(error)):
        export(tmp_path / name, opened=opening(failing), force=False, json=False)
    assert names_in(tmp_path) == []


def test_an_export_that_the_journal_outgrew_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Busy(MemoryJournal):
        async def held_claims(self) -> AsyncIterator[Sequence[HeldClaim]]:
            await self.append("Thing-late", 0, [encoded("late")], metadata=metadata("late"))
            async for page in super().held_claims():
                yield page

    export(tmp_path / "file", opened=opening(Busy(clock=SetClock())), force=False, json=False)
    assert "warning: the journal was written to meanwhile" in capsys.readouterr().out


def test_a_pipe_is_read_once_and_checked_first(
    journal: MemoryJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, data, target = tmp_path / "pipe", asyncio.run(exported(journal)), MemoryJournal(clock=SetClock())
    os.mkfifo(pipe)
    for whole, what in ((False, data[:-1]), (True, data)):
        writer = threading.Thread(target=pipe.write_bytes, args=(what,))
        writer.start()
        if whole:
            import_(pipe, opened=opening(target), json=False)
        else:
            with pytest.raises(TransferFileDamaged, match="cut off"):
                import_(pipe, opened=opening(target), json=False)
        writer.join()
    assert content(asyncio.run(exported(target))) == content(data)
    terminal = type("Terminal", (), {"isatty": lambda self: True})()
    monkeypatch.setattr(sys, "stdin", terminal)
    with pytest.raises(TransferFailed, match="name the file to import"):
        import_(None, opened=opening(target), json=False)


# From here on: processes.


def python(*arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, **options)


def kiseki(*arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    return python("-m", "kiseki", *arguments, **options)


async def filled_directory(path: Path, streams: int = 50, commits: int = 9) -> bytes:
    async with sqlite(path) as journal:
        await fill(journal, streams, commits)
        return await exported(journal)


@pytest.fixture
async def before(tmp_path: Path) -> bytes:
    """What a data directory holds."""
    return await filled_directory(tmp_path / "before")


async def test_a_journal_moves_through_a_pipe(tmp_path: Path, before: bytes) -> None:
    exporting = kiseki("journal", "export", "--data-dir", tmp_path / "before", stdout=subprocess.PIPE)
    importing = kiseki(
        "journal", "import", "--data-dir", tmp_path / "after", stdin=exporting.stdout, stdout=subprocess.PIPE
    )
    assert exporting.stdout is not None
    exporting.stdout.close()
    out, errors = await asyncio.to_thread(importing.communicate, timeout=100)
    assert (importing.returncode, errors) == (0, b"")
    assert b"450 commits were written by this run" in out
    assert exporting.stderr is not None
    assert exporting.stderr.read().startswith(b"exported 450 commits")
    assert exporting.wait() == 0
    async with sqlite(tmp_path / "after") as journal:
        # Records of the test's time have expired by the clock of the processes.
        assert content(await exported(journal)) == [line for line in content(before) if b'"idempotency"' not in line]


async def test_standard_output_that_is_full_or_closed(tmp_path: Path, before: bytes) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    exporting = kiseki("journal", "export", "--data-dir", tmp_path / "before", stdout=full)
    os.close(full)
    _, errors = await asyncio.to_thread(exporting.communicate, timeout=100)
    assert errors == b"kiseki: standard output can't be written: no space left on device\n"
    assert exporting.returncode == 1
    exporting = kiseki("journal", "export", "--data-dir", tmp_path / "before", stdout=subprocess.PIPE)
    assert exporting.stdout is not None
    assert exporting.stdout.readline().startswith(b'{"kind":"kiseki-journal"')
    exporting.stdout.close()
    assert await asyncio.to_thread(exporting.wait, 100) == 1
    assert exporting.stderr is not None
    assert exporting.stderr.read() == b""


def files_up_to(size: int) -> Callable[[], None]:
    """Stands in for a full disk: writing more is refused as it would be there."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return limit


@pytest.mark.parametrize("name", ["file", "file.gz"])
async def test_a_disk_that_is_full_leaves_nothing(tmp_path: Path, name: str) -> None:
    async with sqlite(tmp_path / "before") as journal:
        for n in range(300):
            noise = random.Random(n).randbytes(1_000).hex().encode()
            await journal.append(f"Thing-{n}", 0, [encoded("a", data=b'"%s"' % noise)], metadata=metadata(f"{n}"))
    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / name
    exporting = kiseki("journal", "export", file, "--data-dir", tmp_path / "before", preexec_fn=files_up_to(100_000))
    _, errors = await asyncio.to_thread(exporting.communicate, timeout=100)
    assert errors.decode() == f"kiseki: {file} can't be written: file too large; nothing of it is left\n"
    assert exporting.returncode == 1
    assert names_in(tmp_path / "out") == []


async def test_a_full_disk_during_an_import_says_what_was_written(tmp_path: Path, before: bytes) -> None:
    data = await filled_directory(tmp_path / "large", 300, 5)
    file = tmp_path / "file"
    file.write_bytes(data)
    arguments = ("journal", "import", file, "--data-dir", tmp_path / "after")
    importing = kiseki(*arguments, preexec_fn=files_up_to(400_000))
    _, errors = await asyncio.to_thread(importing.communicate, timeout=100)
    assert importing.returncode == 1
    assert errors.startswith(b"kiseki: the journal ")
    assert b" of 1,500 commits: mend that, and run the same import again" in errors
    assert errors.count(b"\n") == 1
    importing = kiseki(*arguments, stdout=subprocess.PIPE)
    out, errors = await asyncio.to_thread(importing.communicate, timeout=100)
    assert (importing.returncode, errors) == (0, b"")
    assert b"imported and compared 1,500 commits" in out


def export_and_wait(file: Path) -> None:
    """Stops in the middle of an export, with the file begun."""

    class Waiting(MemoryJournal):
        async def feed(self, after: Position, *, limit: int = 500) -> FeedPage:
            if after:
                print("waiting", flush=True)
                await asyncio.Event().wait()
            return await super().feed(after, limit=limit)

    journal = Waiting(clock=SetClock())
    asyncio.run(fill(journal))
    export(file, opened=opening(journal), force=False, json=False)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
async def test_an_export_that_is_stopped_leaves_no_file(tmp_path: Path, how: signal.Signals) -> None:
    file = tmp_path / "file"
    script = f"from pathlib import Path; from {__name__} import export_and_wait; export_and_wait(Path({str(file)!r}))"
    exporting = python("-c", script, stdout=subprocess.PIPE)
    assert exporting.stdout is not None
    assert await asyncio.to_thread(exporting.stdout.readline) == b"waiting\n"
    assert not file.exists()
    (part,) = names_in(tmp_path)
    assert part.startswith(".file.")
    exporting.send_signal(how)
    await asyncio.to_thread(exporting.communicate, timeout=100)
    assert names_in(tmp_path) == ([] if how is signal.SIGINT else [part])
