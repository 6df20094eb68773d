"""The shim sees every call that changes a file, and what it cannot see is noticed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .harness import assert_complete, find_compiler, run_under_shim, start_under_shim
from .records import Operation, Trace, TraceError, acknowledge, base_of, load_trace
from .replay import Mode, images

Run = Callable[[str], Trace]

CALLS = r"""
#define _GNU_SOURCE
#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

int main(int count, char **arguments)
{
    assert(count == 2 && chdir(arguments[1]) == 0);
    int create = O_RDWR | O_CREAT;
    volatile int again = O_RDWR; /* not a constant: a fortified build calls __open_2 */
    int directory = open(".", O_RDONLY | O_DIRECTORY);
    int a = open("a", create, 0600), b = open64("b", create | O_APPEND, 0600);
    int c = openat(directory, "c", create, 0600), d = openat64(directory, "d", create, 0600);
    int e = creat("e", 0600), f = creat64("f", 0600);
    assert(a >= 0 && b >= 0 && c >= 0 && d >= 0 && e >= 0 && f >= 0);

    struct iovec parts[3] = {{"one", 3}, {"", 0}, {"three", 5}};
    assert(write(a, "write", 5) == 5 && writev(a, parts, 3) == 8 && pwrite(a, "P", 1, 700) == 1);
    assert(write(b, "x", 1) == 1 && lseek(b, 0, SEEK_SET) == 0 && write(b, "appended", 8) == 8);
    assert(pwrite64(c, "far", 3, 5000) == 3 && pwritev(c, parts, 3, 100) == 8);
    assert(pwritev64(d, parts, 3, 1) == 8 && pwritev2(d, parts, 3, 20, 0) == 8);
    assert(pwritev64v2(d, parts, 3, -1, 0) == 8);
    int copy = dup(e);
    assert(copy >= 0 && close(e) == 0 && write(copy, "duplicate", 9) == 9);

    assert(ftruncate(c, 4000) == 0 && ftruncate64(d, 25) == 0);
    assert(truncate("e", 4) == 0 && truncate64("f", 10) == 0);
    assert(fallocate(f, 0, 0, 100) == 0 && fallocate64(f, FALLOC_FL_KEEP_SIZE, 0, 9000) == 0);
    assert(posix_fallocate(a, 0, 900) == 0 && posix_fallocate64(a, 0, 1000) == 0);
    const char *emptied[] = {"g", "h", "i", "j"};
    for (int each = 0; each < 4; each++)
        assert(write(creat(emptied[each], 0600), "gone", 4) == 4);
    assert(open("g", again | O_TRUNC) >= 0 && open64("h", again | O_TRUNC) >= 0);
    assert(openat(directory, "i", again | O_TRUNC) >= 0);
    assert(openat64(directory, "j", again | O_TRUNC) >= 0);

    assert(mkdir("sub", 0700) == 0 && mkdirat(directory, "sub/deep", 0700) == 0);
    assert(mkdir("gone/", 0700) == 0);
    assert(link("a", "sub/a") == 0 && linkat(directory, "c", directory, "sub/c", 0) == 0);
    assert(rename("a", "sub/deep/a") == 0 && renameat(directory, "b", directory, "sub/b") == 0);
    assert(renameat2(directory, "d", directory, "sub/d", RENAME_NOREPLACE) == 0);
    assert(rmdir("gone") == 0 && mkdir("gone", 0700) == 0 && remove("gone") == 0);
    assert(unlink("c") == 0 && unlinkat(directory, "e", 0) == 0 && remove("f") == 0);
    assert(fsync(a) == 0 && fdatasync(directory) == 0);
    return 0;
}
"""


@pytest.fixture
def run(tmp_path: Path, powercut_shim: Path) -> Run:
    """Run Python source with the watched directory as its working directory."""

    def start(source: str) -> Trace:
        directory = tmp_path / "data"
        directory.mkdir()
        program = f"import os, sys; os.chdir(sys.argv[1])\n{source}"
        argv = [sys.executable, "-c", program, str(directory)]
        run_under_shim(argv, directory, tmp_path / "trace", os.environ, shim=powercut_shim)
        return load_trace(tmp_path / "trace")

    return start


@pytest.mark.parametrize("fortified", [False, True])
def test_every_variant_of_every_call_is_recorded(
    fortified: bool,
    tmp_path: Path,
    powercut_shim: Path,
) -> None:
    source, program, directory = tmp_path / "calls.c", tmp_path / "calls", tmp_path / "data"
    source.write_text(CALLS)
    directory.mkdir()
    options = ["-O2", "-U_FORTIFY_SOURCE", *(["-D_FORTIFY_SOURCE=2"] if fortified else [])]
    subprocess.run([find_compiler(), *options, "-o", program, source], check=True, timeout=60)
    run_under_shim(
        [program, directory],
        directory,
        tmp_path / "trace",
        os.environ,
        shim=powercut_shim,
    )
    trace = load_trace(tmp_path / "trace")
    assert_complete(trace, directory)
    assert {record.operation for record in trace.records} == set(Operation) - {Operation.OPAQUE}


@pytest.mark.parametrize("sync_seconds", [None, 0.0, 0.001])
def test_a_sync_is_recorded_whether_it_reaches_the_disk_or_not(
    sync_seconds: float | None,
    tmp_path: Path,
    powercut_shim: Path,
) -> None:
    directory, trace_path = tmp_path / "data", tmp_path / "trace"
    directory.mkdir()
    source = "f = os.open(sys.argv[1] + '/a', os.O_CREAT | os.O_RDWR)\n"
    source += "os.write(f, b'x')\nos.fsync(f)"
    run_under_shim(
        [sys.executable, "-c", f"import os, sys\n{source}", str(directory)],
        directory,
        trace_path,
        os.environ,
        shim=powercut_shim,
        sync_seconds=sync_seconds,
    )
    trace = load_trace(trace_path)
    (image,) = images(trace, [len(trace)], Mode.DROP, 0)
    assert image.files == {"a": b"x"}


def test_a_sync_spans_what_happens_while_it_runs(tmp_path: Path, powercut_shim: Path) -> None:
    directory, trace_path = tmp_path / "data", tmp_path / "trace"
    directory.mkdir()
    source = (
        "import os, sys, threading, time\n"
        "file = os.open(sys.argv[1] + '/a', os.O_CREAT | os.O_RDWR)\n"
        "os.write(file, b'before')\n"
        "sync = threading.Thread(target=os.fsync, args=(file,))\n"
        "sync.start()\n"
        "time.sleep(0.2)\n"
        "os.write(file, b'during')\n"
        "sync.join()\n"
        "os.write(file, b'after')\n"
    )
    argv = [sys.executable, "-c", source, str(directory)]
    run_under_shim(argv, directory, trace_path, os.environ, shim=powercut_shim, sync_seconds=0.6)
    trace = load_trace(trace_path)
    (image,) = images(trace, [len(trace)], Mode.DROP, 0)
    assert image.files == {"a": b"before"}
    order = [record.data or record.operation for record in trace.records if record.path == "a"]
    begin, end = Operation.SYNC_BEGIN, Operation.SYNC_END
    assert order == [Operation.CREATE, b"before", begin, b"during", end, b"after"]


def test_forked_processes_write_one_trace(run: Run, tmp_path: Path) -> None:
    trace = run(
        "import threading\n"
        "def append(name):\n"
        "    f = os.open('a', os.O_CREAT | os.O_RDWR | os.O_APPEND)\n"
        "    for number in range(200): os.write(f, f'{name}-{number}\\n'.encode())\n"
        "    os.fsync(f)\n"
        "child = os.fork()\n"
        "names = [f'{os.getpid()}-{number}' for number in range(3)]\n"
        "threads = [threading.Thread(target=append, args=(name,)) for name in names]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]\n"
        "if child: assert os.waitpid(child, 0)[1] == 0\n"
    )
    assert_complete(trace, tmp_path / "data")
    (image,) = images(trace, [len(trace)], Mode.DROP, 0)
    assert len(image.files["a"].splitlines()) == 1200


@pytest.mark.parametrize(
    ("call", "source"),
    [
        ("mmap", "import mmap; f = open('a', 'r+b'); mmap.mmap(f.fileno(), 1)"),
        ("sendfile", "os.sendfile(os.open('b', 65), os.open('a', 0), 0, 1)"),
        ("copy_file_range", "os.copy_file_range(os.open('a', 0), os.open('b', 65), 1)"),
        ("splice", "r, w = os.pipe(); os.write(w, b'x'); os.splice(r, os.open('b', 65), 1)"),
        ("symlink", "os.symlink('elsewhere', 'b')"),
        ("link", "open('../outside', 'w'); os.link('../outside', 'b')"),
        ("rename", "open('../outside', 'w'); os.rename('../outside', 'b')"),
    ],
)
def test_a_call_that_cannot_be_replayed_is_refused(run: Run, call: str, source: str) -> None:
    trace = run(f"open('a', 'w').write('x')\n{source}  # 65: O_CREAT | O_WRONLY")
    with pytest.raises(TraceError, match=f"{call} on"):
        list(images(trace, [len(trace)], Mode.DROP, 0))


def test_sockets_and_pipes_are_no_files(run: Run, tmp_path: Path) -> None:
    trace = run(
        "import socket\n"
        "with socket.socket(socket.AF_UNIX) as bound: bound.bind('socket')\n"
        "os.mkfifo('pipe'); os.rename('pipe', 'renamed'); os.link('renamed', 'linked')\n"
        "os.rename('socket', 'elsewhere'); os.unlink('elsewhere'); os.unlink('renamed')\n"
    )
    assert_complete(trace, tmp_path / "data")
    assert {record.operation for record in trace.records} == {Operation.START}
    second = tmp_path / "second"
    program = [sys.executable, "-c", ""]
    shim = tmp_path / "missing.so"
    with pytest.raises(TraceError):  # the base is taken before the program starts
        run_under_shim(program, tmp_path / "data", second, os.environ, shim=shim)
    assert list(base_of(second).iterdir()) == []


def test_a_change_that_escapes_the_shim_is_noticed(run: Run, tmp_path: Path) -> None:
    trace = run("open('a', 'w').write('x')")
    assert_complete(trace, tmp_path / "data")
    (tmp_path / "data" / "a").write_text("y")
    with pytest.raises(AssertionError, match=r"\['a'\]"):
        assert_complete(trace, tmp_path / "data")
    (tmp_path / "data" / "b").write_text("y")
    with pytest.raises(AssertionError, match="different files"):
        assert_complete(trace, tmp_path / "data")


def test_a_program_that_fails_is_an_error_that_shows_its_output(run: Run) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failure:
        run("sys.exit('what went wrong')")
    assert "what went wrong" in failure.value.__notes__[0]


def test_a_program_that_does_not_load_the_shim_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(TraceError, match="does not load the shim"):
        run_under_shim(
            [sys.executable, "-c", ""],
            tmp_path / "data",
            tmp_path / "trace",
            os.environ,
            shim=tmp_path / "missing.so",
        )


def test_a_server_is_recorded_while_a_client_outside_marks_its_replies(
    tmp_path: Path,
    powercut_shim: Path,
) -> None:
    directory, trace_path = tmp_path / "data", tmp_path / "trace"
    directory.mkdir()
    server = (
        "import os, sys\n"
        "file = os.open(sys.argv[1] + '/log', os.O_CREAT | os.O_WRONLY)\n"
        "requests, replies = (os.open(path, os.O_RDWR) for path in sys.argv[2:])\n"
        "while request := os.read(requests, 1):\n"
        "    os.write(file, request)\n"
        "    os.fsync(file)\n"
        "    os.write(replies, request)\n"
    )
    pipes = [str(tmp_path / "requests"), str(tmp_path / "replies")]
    for pipe in pipes:
        os.mkfifo(pipe)
    requests, replies = (os.open(pipe, os.O_RDWR) for pipe in pipes)
    argv = [sys.executable, "-c", server, str(directory), *pipes]
    process = start_under_shim(argv, directory, trace_path, os.environ, shim=powercut_shim)
    try:
        for number in range(100):
            os.write(requests, b"x")
            assert os.read(replies, 1) == b"x"
            acknowledge(trace_path, str(number))
    finally:
        process.kill()
        process.wait()
        os.close(requests)
        os.close(replies)
    trace = load_trace(trace_path)
    assert_complete(trace, directory)
    for image in images(trace, range(len(trace) + 1), Mode.DROP, 0):
        assert len(image.files.get("log", b"")) >= len(image.acknowledged)
    assert len(image.acknowledged) == 100


def test_the_trace_must_be_outside_of_the_watched_directory(
    tmp_path: Path,
    powercut_shim: Path,
) -> None:
    with pytest.raises(ValueError, match="inside the watched directory"):
        run_under_shim(
            [sys.executable],
            tmp_path,
            tmp_path / "trace",
            os.environ,
            shim=powercut_shim,
        )
