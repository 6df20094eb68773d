"""The model of a disk, on traces made by hand: each rule of ``replay`` once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from .records import (
    Operation,
    Record,
    Trace,
    TraceError,
    acknowledge,
    choose_cuts,
    encode,
    load_trace,
)
from .replay import POWER_CUTS, Image, Mode, images

INODES = {"a": 1, "b": 2, "log": 3, "log.1": 3, "sub/c": 5, ".": 100, "sub": 101}


def create(path: str, *, inode: int | None = None) -> Record:
    return Record(operation=Operation.CREATE, path=path, inode=inode or INODES[path])


def write(path: str, offset: int, data: bytes, *, inode: int | None = None) -> Record:
    return Record(
        operation=Operation.WRITE,
        path=path,
        inode=inode or INODES[path],
        offset=offset,
        data=data,
    )


def truncate(path: str, size: int) -> Record:
    return Record(operation=Operation.TRUNCATE, path=path, inode=INODES[path], offset=size)


def begin(path: str, *, thread: int = 0) -> Record:
    return Record(operation=Operation.SYNC_BEGIN, path=path, inode=INODES[path], thread=thread)


def end(path: str, *, thread: int = 0) -> Record:
    return Record(operation=Operation.SYNC_END, path=path, inode=INODES[path], thread=thread)


def sync(path: str) -> list[Record]:
    return [begin(path), end(path)]


def unlink(path: str) -> Record:
    return Record(operation=Operation.UNLINK, path=path, inode=INODES[path])


def rename(old: str, new: str) -> Record:
    return Record(operation=Operation.RENAME, path=old, other=new, inode=INODES[old])


def last(records: Sequence[Record], mode: Mode, *, seed: int = 0) -> Image:
    (image,) = images(Trace(records), [len(records)], mode, seed)
    return image


def outcomes(records: Sequence[Record], mode: Mode) -> set[tuple[tuple[str, bytes], ...]]:
    """Every distinct set of files that 200 seeds produce."""
    return {tuple(sorted(last(records, mode, seed=seed).files.items())) for seed in range(200)}


def test_a_completed_sync_makes_earlier_writes_durable_and_no_later_ones() -> None:
    records = [create("a"), write("a", 0, b"kept"), *sync("a"), write("a", 4, b"lost")]
    assert last(records, Mode.DROP).files == {"a": b"kept"}
    assert last(records, Mode.KEEP).files == {"a": b"keptlost"}


def test_a_sync_that_has_not_ended_promises_nothing() -> None:
    assert last([create("a"), write("a", 0, b"x"), begin("a")], Mode.DROP).files == {}


def test_a_write_during_a_sync_is_not_covered_by_it() -> None:
    records = [create("a"), write("a", 0, b"1"), begin("a"), write("a", 1, b"2"), end("a")]
    assert last(records, Mode.DROP).files == {"a": b"1"}


def test_overlapping_syncs_of_two_threads_cover_what_each_began_after() -> None:
    records = [create("a"), write("a", 0, b"1"), begin("a", thread=1), write("a", 1, b"2")]
    records += [begin("a", thread=2), end("a", thread=2), write("a", 2, b"3"), end("a", thread=1)]
    assert last(records, Mode.DROP).files == {"a": b"12"}


def test_a_sync_of_one_file_does_not_help_another() -> None:
    records = [create("a"), create("b"), *sync("."), write("b", 0, b"x"), *sync("a")]
    assert last(records, Mode.DROP).files == {"a": b"", "b": b""}


def test_subset_loses_whole_writes_in_any_combination() -> None:
    records = [create("a"), *sync("a"), write("a", 0, b"1" * 600), write("a", 600, b"2" * 600)]
    first, second = b"1" * 600, b"2" * 600
    expected = {b"", first, first + second, bytes(600) + second}
    assert {dict(files)["a"] for files in outcomes(records, Mode.SUBSET)} == expected


def test_torn_splits_at_sectors_and_never_inside_one() -> None:
    records = [create("a"), write("a", 0, bytes(1536)), *sync("a"), write("a", 100, b"x" * 1000)]
    seen = {dict(files)["a"] for files in outcomes(records, Mode.TORN)}
    assert len(seen) == 8, "each of the three sectors has its write or not"
    for content in seen:
        pieces = (content[100:512], content[512:1024], content[1024:1100])
        assert all(len(set(piece)) == 1 for piece in pieces)


def test_torn_reorders_sectors_but_not_the_changes_of_one() -> None:
    records = [create("a"), write("a", 0, b"0" * 1024), *sync("a")]
    records += [write("a", 0, b"1" * 1024), write("a", 0, b"2" * 1024)]
    seen = {dict(files)["a"] for files in outcomes(records, Mode.TORN)}
    assert b"0" * 512 + b"2" * 512 in seen
    assert {content[:512] for content in seen} == {b"0" * 512, b"1" * 512, b"2" * 512}
    gaps = [create("a"), write("a", 0, b"00"), *sync("a"), write("a", 0, b"1"), write("a", 1, b"2")]
    assert {dict(files)["a"] for files in outcomes(gaps, Mode.TORN)} == {b"00", b"10", b"12"}


def test_a_truncation_may_be_lost_until_it_is_synced() -> None:
    records = [create("a"), write("a", 0, b"long"), *sync("a"), truncate("a", 1)]
    assert {dict(files)["a"] for files in outcomes(records, Mode.SUBSET)} == {b"long", b"l"}
    assert last([*records, *sync("a")], Mode.DROP).files == {"a": b"l"}


def test_an_allocation_grows_a_file_with_zeros_and_other_modes_are_refused() -> None:
    def allocate(mode: int) -> Record:
        return Record(
            operation=Operation.ALLOCATE,
            path="a",
            inode=1,
            argument=mode,
            offset=1,
            length=3,
        )

    grown = last([create("a"), write("a", 0, b"x"), allocate(0), *sync("a")], Mode.DROP)
    assert grown.files == {"a": b"x\0\0\0"}
    assert last([create("a"), write("a", 0, b"x"), allocate(1)], Mode.KEEP).files == {"a": b"x"}
    with pytest.raises(TraceError, match="fallocate mode 3"):
        last([create("a"), allocate(3)], Mode.KEEP)


def test_a_name_is_durable_with_a_sync_of_the_file_or_of_its_directory() -> None:
    assert last([create("a"), *sync("a")], Mode.DROP).files == {"a": b""}
    assert last([create("a"), *sync(".")], Mode.DROP).files == {"a": b""}
    assert {len(files) for files in outcomes([create("a")], Mode.SUBSET)} == {0, 1}


def test_a_name_given_while_its_directory_is_synced_is_not_covered() -> None:
    assert last([begin("."), create("a"), end(".")], Mode.DROP).files == {}


def test_an_unlinked_file_may_come_back_until_the_directory_is_synced() -> None:
    records = [create("a"), write("a", 0, b"x"), *sync("a"), unlink("a")]
    assert last(records, Mode.DROP).files == {"a": b"x"}
    assert {len(files) for files in outcomes(records, Mode.TORN)} == {0, 1}
    assert last([*records, *sync(".")], Mode.DROP).files == {}


def test_a_name_used_again_belongs_to_the_new_file() -> None:
    records = [create("a"), write("a", 0, b"old"), *sync("a"), unlink("a")]
    records += [create("a", inode=1), write("a", 0, b"new"), *sync("a")]
    assert last(records, Mode.DROP).files == {"a": b"new"}


def test_a_rename_replaces_its_target_at_once_or_not_at_all() -> None:
    records = [create("b"), write("b", 0, b"old"), *sync("b")]
    records += [create("a"), write("a", 0, b"new"), *sync("a"), rename("a", "b")]
    expected = {(("a", b"new"), ("b", b"old")), (("b", b"new"),)}
    assert outcomes(records, Mode.SUBSET) == expected
    assert last([*records, *sync(".")], Mode.DROP).files == {"b": b"new"}


def test_rotating_a_log_never_loses_it() -> None:
    records = [create("log"), write("log", 0, b"old"), *sync("log"), rename("log", "log.1")]
    records += [create("log", inode=9), write("log", 0, b"new", inode=9)]
    for files in outcomes(records, Mode.SUBSET):
        assert b"old" in dict(files).values()


def test_directories_are_kept_and_sync_their_own_names_only() -> None:
    records = [
        Record(operation=Operation.MKDIR, path="sub", inode=101),
        create("sub/c"),
        create("a"),
    ]
    assert last([*records, *sync("sub")], Mode.DROP).files == {"sub/c": b""}
    assert last(records, Mode.DROP).directories == {"sub"}


def test_what_cannot_be_replayed_is_refused() -> None:
    opaque = Record(operation=Operation.OPAQUE, path="a", other="mmap", inode=1)
    with pytest.raises(TraceError, match="mmap on a"):
        last([create("a"), opaque], Mode.DROP)
    with pytest.raises(TraceError, match="its creation is not in the trace"):
        last([write("a", 0, b"x")], Mode.DROP)
    moved = Record(operation=Operation.RENAME, path="sub", other="elsewhere", inode=101)
    with pytest.raises(TraceError, match="renaming a directory"):
        last([Record(operation=Operation.MKDIR, path="sub", inode=101), moved], Mode.DROP)


def test_images_are_the_same_for_the_same_seed_alone_or_among_others() -> None:
    records = [create("a"), *sync("a"), *(write("a", 512 * n, b"x" * 512) for n in range(40))]
    trace = Trace(records)
    many = {image.cut: image.files for image in images(trace, range(len(trace) + 1), Mode.TORN, 7)}
    (alone,) = images(trace, [30], Mode.TORN, 7)
    (other,) = images(trace, [30], Mode.TORN, 8)
    assert alone.files == many[30]
    assert alone.files != other.files


def test_marks_follow_the_order_of_the_trace_and_are_no_file(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(encode(create("a")))
    acknowledge(path, "one")
    with path.open("ab") as file:
        file.write(b"".join(encode(record) for record in sync("a")))
    acknowledge(path, "zwei ✓")
    trace = load_trace(path)
    marks = [image.acknowledged for image in images(trace, range(6), Mode.DROP, 0)]
    assert marks == [[], [], ["one"], ["one"], ["one"], ["one", "zwei ✓"]]
    assert last(trace.records, Mode.KEEP).files == {"a": b""}
    assert {2, 5} <= set(choose_cuts(trace, 4, seed=0))


def test_a_trace_survives_encoding_and_a_torn_end(tmp_path: Path) -> None:
    records = [create("a"), write("a", 3, b"data"), rename("a", "b"), *sync("a")]
    content = b"".join(encode(record) for record in records)
    path = tmp_path / "trace"
    path.write_bytes(content)
    assert [encode(record) for record in load_trace(path).records] == [encode(r) for r in records]
    path.write_bytes(content[:-3])
    assert len(load_trace(path)) == len(records) - 1
    path.write_bytes(content[5:])
    with pytest.raises(TraceError, match="no record at byte 0"):
        load_trace(path)


def test_an_image_is_written_to_a_directory_of_its_own(tmp_path: Path) -> None:
    image = last(
        [Record(operation=Operation.MKDIR, path="sub"), create("sub/c"), *sync("sub/c")],
        Mode.DROP,
    )
    image.write_to(tmp_path / "image")
    assert (tmp_path / "image" / "sub" / "c").read_bytes() == b""
    with pytest.raises(FileExistsError, match="not empty"):
        image.write_to(tmp_path / "image")


@pytest.mark.parametrize("mode", POWER_CUTS)
def test_the_contents_before_the_first_run_are_durable(mode: Mode, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c").write_bytes(b"before")
    (image,) = images(Trace([write("sub/c", 6, b"!")], tmp_path), [0], mode, 0)
    assert image.files == {"sub/c": b"before"}
    (image,) = images(Trace([write("sub/c", 6, b"!")], tmp_path), [1], Mode.KEEP, 0)
    assert image.files == {"sub/c": b"before!"}
