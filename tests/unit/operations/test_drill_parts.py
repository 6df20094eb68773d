"""Parts of the drill and of `kiseki dr status`: the probe, the report's verdict, and how old is too old."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

import msgspec
import pytest

from kiseki.operations.backup.catalog import Verification
from kiseki.operations.backup.manifest import FORMAT, Made, Manifest, Part
from kiseki.operations.backups import Backups
from kiseki.operations.dr.ages import ages
from kiseki.operations.dr.status import StatusLine
from kiseki.operations.drill.load import Load
from kiseki.operations.drill.probe import Change, probe_address, watch
from kiseki.operations.drill.report import DRILLS, DrillReport, in_words
from kiseki.operations.errors import OperationFailed
from kiseki.operations.places.folder import FolderPlace
from kiseki.service.settings import Settings

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Answers(ThreadingHTTPServer):
    """Answers every request with the status that it was told last."""

    daemon_threads = True

    def __init__(self) -> None:
        self.status = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(outer.status)
                self.send_header("content-length", "0")
                self.end_headers()

            do_POST = do_GET  # noqa: N815  # the name that the library asks for

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])


@pytest.fixture
def answers() -> Iterator[Answers]:
    server = Answers()
    yield server
    server.shutdown()
    server.server_close()


def test_the_probe_tells_of_changes_and_of_nothing_else(answers: Answers) -> None:
    changes: Queue[Change] = Queue()
    stop = threading.Event()
    address = probe_address(f"http://127.0.0.1:{answers.port}/ready")
    watching = threading.Thread(
        target=watch,
        args=([address],),
        kwargs={"every": 0.01, "failures": 3, "tell": changes.put, "stop": stop},
    )
    watching.start()
    try:
        assert changes.get(timeout=10).up
        answers.status = 503
        down = changes.get(timeout=10)
        assert not down.up
        assert down.since < down.at
        assert "status 503" in down.cause
        answers.status = 200
        assert changes.get(timeout=10).up
        assert changes.empty()
    finally:
        stop.set()
        watching.join(10)
    assert not watching.is_alive()


def test_one_bad_answer_is_no_disaster(answers: Answers) -> None:
    changes: list[Change] = []
    looks = 0

    class Counted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            nonlocal looks
            looks += 1
            answers.status = 503 if looks in (2, 3) else 200  # two in a row, of three that it takes
            return looks == 6

    address = probe_address(f"http://127.0.0.1:{answers.port}")
    watch([address], every=0.0, failures=3, tell=changes.append, stop=Counted())
    assert [change.up for change in changes] == [True]


@pytest.mark.parametrize("url", ["", "shop:8558", "ftp://shop/ready", "http://", "http://shop:99999/ready"])
def test_what_the_probe_cant_look_at(url: str) -> None:
    with pytest.raises(OperationFailed, match="URL such as"):
        probe_address(url)


def test_a_client_counts_what_was_not_acknowledged(answers: Answers) -> None:
    answers.status = 503
    load = Load(answers.port, clients=2)
    load.start()
    assert not load.wait_first(0.2)
    seen = load.stop()
    assert seen.acknowledged == []
    assert seen.failed > 0


def report(**changed: Any) -> DrillReport:
    given: dict[str, Any] = {
        "at": NOW,
        "kiseki": "0",
        "store": "sqlite",
        "events": 1_000,
        "clients": 4,
        "protection_interval": 60.0,
        "waited": 12.3,
        "detection": 14.0,
        "rpo": 20.0,
        "rto": 100.0,
        "phases": {"restore": 80.0},
        "acknowledged": 500,
        "lost": 30,
        "recovered_events": 970,
        "sound": True,
        "projections_behind": 0,
        "proved": "acknowledges commands again",
    }
    return DrillReport(**{**given, **changed})


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"detection": 301.0}, "MISSED"),
        ({"rpo": 301.0}, "MISSED"),
        ({"rto": 3_601.0}, "MISSED"),
        ({"sound": False}, "DAMAGED"),
        ({"projections_behind": 1}, "1 commits behind"),
    ],
)
def test_a_drill_that_kept_not_everything_failed(changed: dict[str, Any], says: str) -> None:
    assert report().passed
    failed = report(**changed)
    assert not failed.passed
    assert says in in_words(failed)
    assert "FAILED" in in_words(failed)
    assert "FAILED" not in in_words(report())


class World:
    def __init__(self, folder: Path) -> None:
        self.place = FolderPlace(folder / "backups", setting="backup")
        (folder / "backups").mkdir()
        self.settings = Settings(data_dir=folder / "data", backup=str(folder / "backups"))

    async def lines(self) -> dict[str, StatusLine]:
        return {line.name: line for line in await ages(self.settings, NOW)}

    async def backup(self, age: timedelta, *, sound: bool | None) -> None:
        at = NOW - age
        identity = f"{at:%Y%m%dT%H%M%SZ}-000000"
        manifest = Manifest(
            format=FORMAT,
            id=identity,
            part=Part.JOURNAL,
            kiseki="0",
            started_at=at,
            finished_at=at,
            made=Made(store="sqlite", method="online", as_of=at),
            files=(),
        )
        async with self.place.workspace(f"journal/{identity}") as folder:
            (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
            await self.place.publish(folder, f"journal/{identity}")
        if sound is not None:
            async with Backups.opened(self.settings) as backups:
                await backups.catalog(Part.JOURNAL).note(manifest, Verification(at=at, sound=sound, found=""))

    async def drill(self, age: timedelta, **changed: Any) -> None:
        at = NOW - age
        data = msgspec.json.encode(report(at=at, **changed))
        await self.place.write(f"{DRILLS}/{at:%Y%m%dT%H%M%SZ}.json", data)


async def test_what_is_too_old_has_to_be_looked_at(tmp_path: Path) -> None:
    world = World(tmp_path)
    lines = await world.lines()
    assert not any(lines[name].good for name in ("backup of journal", "protection of the journal", "drill"))
    await world.backup(timedelta(hours=30), sound=True)
    await world.drill(timedelta(days=181))
    lines = await world.lines()
    assert "30 h ago" in lines["backup of journal"].value
    assert not lines["backup of journal"].good
    assert not lines["drill"].good
    await world.backup(timedelta(hours=1), sound=None)  # not proved
    assert not (await world.lines())["backup of journal"].good
    await world.backup(timedelta(minutes=30), sound=True)
    await world.drill(timedelta(days=100))
    lines = await world.lines()
    assert lines["backup of journal"].good
    assert lines["drill"].good
    await world.drill(timedelta(days=1), rto=4_000.0)
    line = (await world.lines())["drill"]
    assert not line.good
    assert "FAILED" in line.value


async def test_no_place_is_said(tmp_path: Path) -> None:
    (line,) = await ages(Settings(data_dir=tmp_path / "data"), NOW)
    assert not line.good
    assert "backup" in line.value
