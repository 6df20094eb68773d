"""What every kind of place promises."""

from __future__ import annotations

import asyncio
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kiseki.operations.errors import BackupDamaged, OperationFailed, OperatorBusy
from kiseki.operations.places.port import LAST, Place
from tests.integration.operations.places.place_parts import published


async def names(place: Place, prefix: str = "") -> list[str]:
    return [each.name for each in await place.names(prefix)]


async def test_what_is_published_is_there_and_durable_for_others(place: Place, another: Place) -> None:
    data = os.urandom(100_000)
    await published(place, "journal/one", data=data, empty=b"")
    assert await names(another) == ["journal/one/data", "journal/one/empty", f"journal/one/{LAST}"]
    assert await another.read(f"journal/one/{LAST}") == b"manifest of journal/one"
    async with another.fetched("journal/one", ["data", "empty", LAST]) as folder:
        assert (folder / "data").read_bytes() == data
        assert (folder / "empty").read_bytes() == b""
    stored = (await another.names("journal/one/data"))[0]
    assert stored.size == len(data)
    assert abs(datetime.now(UTC) - stored.changed_at) < timedelta(minutes=1)


async def test_nothing_of_a_workspace_is_left_or_seen(place: Place, another: Place, tmp_path: Path) -> None:
    async with place.workspace("journal/one") as folder:
        assert list(folder.iterdir()) == []
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "data").write_bytes(b"x")
        assert await names(another) == []
    assert not folder.exists()
    with pytest.raises(RuntimeError, match="mine"):
        async with place.workspace("journal/one"):
            raise RuntimeError("mine")
    assert [path for path in tmp_path.rglob("*") if ".part-" in path.name] == []


async def test_a_name_is_published_once(place: Place, another: Place) -> None:
    await published(place, "journal/one", data=b"first")
    with pytest.raises(OperationFailed, match="there is a journal/one already; it stays; use a new name"):
        await published(another, "journal/one", data=b"second", more=b"more")
    async with place.fetched("journal/one", ["data"]) as folder:
        assert (folder / "data").read_bytes() == b"first"
    assert await names(place) == ["journal/one/data", f"journal/one/{LAST}"]


async def test_a_folder_to_publish_is_flat_and_has_a_manifest(place: Place) -> None:
    async with place.workspace("journal/one") as folder:
        (folder / "data").write_bytes(b"x")
        with pytest.raises(ValueError, match=LAST):
            await place.publish(folder, "journal/one")
        (folder / LAST).write_bytes(b"{}")
        (folder / "inner").mkdir()
        with pytest.raises(ValueError, match="files only"):
            await place.publish(folder, "journal/one")
        (folder / "inner").rmdir()
        (folder / "inner").symlink_to("/etc/passwd")
        with pytest.raises(ValueError, match="files only"):
            await place.publish(folder, "journal/one")
    assert await names(place) == []


async def test_files_of_their_own(place: Place, another: Place, tmp_path: Path) -> None:
    assert await place.read("journal-increments/a/0001") is None
    await place.write("journal-increments/a/0001", b"one")
    await place.write("journal-increments/a/0001", b"two")
    source = tmp_path / "source"
    source.write_bytes(b"three")
    await place.put("journal-increments/a/0002", source)
    assert source.read_bytes() == b"three"
    await place.write("journal-increments/b/0001", b"four")
    assert await names(another, "journal-increments/a/") == ["journal-increments/a/0001", "journal-increments/a/0002"]
    assert await names(another, "journal-increments/a/0002") == ["journal-increments/a/0002"]
    assert await names(another, "journal") == [
        *await names(another, "journal-increments/a/"),
        "journal-increments/b/0001",
    ]
    assert await names(another, "nothing/") == []
    assert await another.read("journal-increments/a/0001") == b"two"
    assert await another.read("journal-increments/a/0002") == b"three"


async def test_removing(place: Place, another: Place) -> None:
    await published(place, "journal/one", data=b"1")
    await published(place, "journal/one-more", data=b"2")
    await place.write("heads", b"3")
    await place.remove("journal/one")
    await place.remove("journal/one")
    await place.remove("never/there")
    assert await names(another) == ["heads", "journal/one-more/data", f"journal/one-more/{LAST}"]
    await place.remove("heads")
    await place.remove("journal")
    assert await names(another) == []
    await published(another, "journal/one", data=b"again")
    assert len(await names(place)) == 2


async def test_a_missing_file_of_a_published_folder_is_damage(place: Place) -> None:
    await published(place, "journal/one", data=b"1")
    with pytest.raises(BackupDamaged, match="journal/one has no file other"):
        async with place.fetched("journal/one", ["data", "other"]):
            raise AssertionError
    with pytest.raises(BackupDamaged, match="journal/two has no file data"):
        async with place.fetched("journal/two", ["data"]):
            raise AssertionError


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", ".hidden", "a/.hidden/b", "a\n", "a b"]
)
async def test_names_that_lead_elsewhere(place: Place, name: str, tmp_path: Path) -> None:
    with pytest.raises(OperationFailed, match="is no name in a place of backups"):
        await place.read(name)
    with pytest.raises(OperationFailed, match="is no name in a place of backups"):
        await place.write(name, b"x")
    with pytest.raises(OperationFailed, match="is no name in a place of backups"):
        await place.remove(name)
    with pytest.raises(OperationFailed, match="is no name in a place of backups"):
        await place.publish(tmp_path, name)
    with pytest.raises(OperationFailed, match="is no name in a place of backups"):
        async with place.workspace(name):
            raise AssertionError
    with pytest.raises(OperationFailed, match="is no name in a place of backups"):
        async with place.fetched("a", [name]):
            raise AssertionError
    with pytest.raises(OperationFailed, match="is no name in a place of backups"):
        async with place.lock(name):
            raise AssertionError
    if name not in ("", "a/"):
        with pytest.raises(OperationFailed, match="is no name in a place of backups"):
            await place.names(name)


async def test_one_operator_at_a_time(place: Place, another: Place) -> None:
    async with place.lock("journal"):
        with pytest.raises(
            OperatorBusy, match=rf"journal is held by \S+, process {os.getpid()} on \S+, since 20.* UTC; wait"
        ):
            async with another.lock("journal"):
                raise AssertionError
        async with another.lock("keys"):
            pass
    async with another.lock("journal"):
        pass
    with pytest.raises(RuntimeError, match="mine"):
        async with place.lock("journal"):
            raise RuntimeError("mine")
    async with another.lock("journal"):
        assert await names(another) == []


async def test_two_that_publish_the_same_at_once(place: Place, another: Place) -> None:
    """One is there in the end, whole, and the other was told."""
    outcomes = await asyncio.gather(
        published(place, "journal/one", data=b"a" * 50_000, first=b"a"),
        published(another, "journal/one", data=b"b" * 50_000, second=b"b"),
        return_exceptions=True,
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes if outcome is not None) in (
        ["OperationFailed"],
        ["OperatorBusy"],
    )
    won = "first" if outcomes[0] is None else "second"
    async with place.fetched("journal/one", ["data", won, LAST]) as folder:
        assert (folder / "data").read_bytes()[:1] == (folder / won).read_bytes()
    assert len(await names(place)) == 3


async def test_closing_again_is_fine(place: Place) -> None:
    assert await names(place) == []
    await place.close()
    await place.close()
