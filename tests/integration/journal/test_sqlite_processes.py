"""Several processes on one SQLite journal: writing together, waking one another, and being killed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from kiseki.journal.port import START, Conflict
from kiseki.journal.sqlite.journal import SqliteJournal
from kiseki.journal.verify import verify
from kiseki.testing.journal_conformance import encoded, everything, metadata, whole_feed
from tests.integration.journal.sqlite_parts import append, append_many, child, hear, line_from, opened, say

STREAMS = 5


async def add_to_shared_streams(journal: SqliteJournal, name: str, rounds: int) -> int:
    """Appends to streams that others append to as well, each time after what was read; returns the conflicts."""

    async def add(stream: str) -> int:
        conflicts = last = 0
        for number in range(rounds):
            while True:
                about = metadata(f"{name}-{stream}-{number}-{last}")
                try:
                    commit = await journal.append(stream, last, [encoded(f"{name}-{number}")], metadata=about)
                except Conflict:
                    conflicts += 1
                    last += len(await everything(journal, stream, last))
                else:
                    last = commit.last_sequence_number
                    break
        return conflicts

    return sum(await asyncio.gather(*(add(f"Thing-{n}") for n in range(STREAMS))))


async def write_along(path: Path, name: str, rounds: int) -> None:
    async with opened(path) as journal:
        say("ready")
        await hear()
        say(await add_to_shared_streams(journal, name, rounds))


async def test_processes_write_to_the_same_streams(tmp_path: Path) -> None:
    path, rounds, names = tmp_path / "journal.db", 40, ("a", "b", "c")
    async with opened(path) as journal:
        others = [await child(write_along, path, name, rounds) for name in names[1:]]
        for other in others:
            assert await line_from(other) == "ready"
        followed: list[tuple[str, int]] = []

        async def follow() -> None:
            position = START
            while len(followed) < STREAMS * rounds * len(names):
                page = await journal.feed(position, limit=7)
                followed.extend((commit.stream, commit.first_sequence_number) for commit in page.commits)
                position = page.position

        following = asyncio.ensure_future(follow())
        for other in others:
            assert other.stdin is not None
            other.stdin.write(b"go\n")
        conflicts = [await add_to_shared_streams(journal, names[0], rounds)]
        conflicts += [int(await line_from(other)) for other in others]
        assert [await other.wait() for other in others] == [0, 0]
        async with asyncio.timeout(60):
            await following
        assert sum(conflicts) > 0
        for n in range(STREAMS):
            stream = f"Thing-{n}"
            assert [number for name, number in followed if name == stream] == list(range(1, rounds * 3 + 1))
            events = await everything(journal, stream)
            assert sorted(event.event_id for event in events) == sorted(
                f"{f'{name}-{number}':0>26}" for name in names for number in range(rounds)
            )
        assert (await verify(journal, lambda commits: None)).sound


async def write_until_killed(path: Path, name: str) -> None:
    """Says what was acknowledged, one line for each commit, until it is killed."""
    async with opened(path) as journal:

        async def write(n: int) -> None:
            for number in range(1_000_000):
                await append(journal, f"Thing-{name}.{n}", number)
                os.write(1, f"Thing-{name}.{n} {number + 1}\n".encode())

        await asyncio.gather(*(write(n) for n in range(8)))


@pytest.mark.parametrize("lines", [1, 100, 777])
async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path, lines: int) -> None:
    """Two processes write and both are killed, one after the other; a third one sees everything they were told."""
    path = tmp_path / "journal.db"
    writers = [await child(write_until_killed, path, name) for name in ("a", "b")]
    acknowledged: dict[str, int] = {}

    async def note(writer: asyncio.subprocess.Process, enough: int) -> None:
        for _ in range(enough):
            stream, number = (await line_from(writer)).split()
            acknowledged[stream] = int(number)

    await asyncio.gather(*(note(writer, lines) for writer in writers))
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        while line := await line_from(writer):  # what it was told before it died
            stream, number = line.split()
            acknowledged[stream] = int(number)
        assert await writer.wait() == -signal.SIGKILL
        async with opened(path) as journal:  # while the other one still writes
            for stream, last in list(acknowledged.items()):
                assert len(await everything(journal, stream)) >= last
            await append(journal, "Other-1", len(await everything(journal, "Other-1")))
            assert await journal.integrity() == ()
            assert (await verify(journal, lambda commits: None)).problems == ()


async def append_when_told(path: Path) -> None:
    async with opened(path) as journal:
        say("ready")
        number = 0
        while await hear() == "append":
            await append(journal, "Thing-1", number)
            number += 1
            say(number)


async def watch_until_woken(path: Path) -> None:
    async with opened(path) as journal:
        woken = asyncio.Event()
        journal.watch(woken.set)
        say("watching")
        await woken.wait()
        say(len(await whole_feed(journal)))


@pytest.mark.parametrize("depth", [0, 12])
async def test_watchers_are_woken_across_processes(tmp_path: Path, depth: int) -> None:
    """Also where the path is longer than a socket's address may be."""
    directory = tmp_path.joinpath(*["a-long-name"] * depth)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "journal.db"
    writer, watcher = await child(append_when_told, path), None
    assert await line_from(writer) == "ready"
    assert writer.stdin is not None
    async with opened(path) as journal:
        woken = asyncio.Event()
        end = journal.watch(woken.set)
        for number in (1, 2):
            woken.clear()
            writer.stdin.write(b"append\n")
            async with asyncio.timeout(30):
                await woken.wait()
                assert await line_from(writer) == f"{number}"
        watcher = await child(watch_until_woken, path)
        assert await line_from(watcher) == "watching"
        await append(journal, "Other-1", 0)
        async with asyncio.timeout(30):
            assert await line_from(watcher) == "3"
            assert await watcher.wait() == 0
        # Nobody watches any more: no socket is left, and appending does not mind.
        end()
        assert list(directory.joinpath("journal.db.wake").iterdir()) == []
        writer.stdin.write(b"append\nstop\n")
        assert await writer.wait() == 0


async def test_sockets_of_the_dead_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    watcher = await child(watch_until_woken, path)
    assert await line_from(watcher) == "watching"
    wake = tmp_path / "journal.db.wake"
    (left,) = wake.iterdir()
    watcher.kill()
    await watcher.wait()
    async with opened(path) as journal:
        assert left.exists()
        assert wake.stat().st_mode & 0o777 == 0o700
        woken = asyncio.Event()
        journal.watch(woken.set)
        (wake / "not a socket.sock").write_text("a file of somebody else")
        await append(journal, "Thing-1", 0)
        await woken.wait()
        await journal.check()  # the writer has sent its hints when it takes the next thing
        assert not left.exists()
        assert sorted(file.name for file in wake.iterdir()) == sorted([f"{os.getpid()}-0.sock", "not a socket.sock"])


async def test_a_directory_of_others_is_not_used(tmp_path: Path) -> None:
    wake = tmp_path / "journal.db.wake"
    wake.mkdir(mode=0o777)
    wake.chmod(0o777)
    async with opened(tmp_path / "journal.db") as journal:
        woken = asyncio.Event()
        journal.watch(woken.set)
        assert list(wake.iterdir()) == []
        await append(journal, "Thing-1", 0)
        await woken.wait()  # by this journal itself


async def test_a_watcher_that_does_not_read_its_hints_holds_nobody_up(tmp_path: Path) -> None:
    wake = tmp_path / "journal.db.wake"
    wake.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(wake / "1-0.sock"))
        async with opened(tmp_path / "journal.db") as journal:
            async with asyncio.timeout(60):
                for number in range(700):  # more than a socket's queue holds
                    await append(journal, "Thing-1", number)
            assert (wake / "1-0.sock").exists()
            await append_many(journal, 5, 700)


async def test_a_watcher_that_fails_does_not_keep_others_from_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path / "journal.db") as journal:
        woken = asyncio.Event()

        def fail() -> None:
            raise RuntimeError("no")

        journal.watch(fail)
        journal.watch(woken.set)
        await append(journal, "Thing-1", 0)
        await woken.wait()
    assert "a function that waits for the journal to grow failed" in caplog.text
