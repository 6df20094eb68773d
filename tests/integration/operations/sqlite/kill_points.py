"""Kills a process of its own at every second line of chosen modules, one after the other, and looks at what is left.

Run in a fresh process (`child`), which forks one process for each line: it has no other threads.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["killed_at_each_line"]


def killed_at_each_line(
    modules: tuple[str, ...], prepare: Callable[[], None], work: Callable[[], None], look: Callable[[], None]
) -> int:
    """How many lines there were. For every second: `prepare`, `work` in a process that dies before it, `look`."""
    line = -1
    while True:
        line += 2
        prepare()
        child = os.fork()
        if child == 0:
            try:
                _die_before(line, modules)
                work()
            except BaseException as problem:  # whatever it is, the process must not go on as its parent
                print(repr(problem), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        look()
        if not os.WIFSIGNALED(status):
            if status != 0:
                raise AssertionError("the work failed by itself")
            return line - 1


def _die_before(line: int, modules: tuple[str, ...]) -> None:
    left = line

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(modules):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    threading.settrace(trace)
    sys.settrace(trace)
