"""Signals before a process has begun anything, and after it has ended all of it. Used by the commands that run one.

In between `kiseki.service.lifecycle` hears them. Imports nothing that takes time.
"""

from __future__ import annotations

import os
import signal
from typing import Any, Final

__all__ = ["end_at_once", "ignore", "no_more"]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def end_at_once() -> None:
    """From here on SIGTERM and SIGINT end the process at once, with exit code 0: there is nothing to end in order yet.

    Without it the first process of a container would not hear a SIGTERM while it imports its code: the kernel keeps
    away from it what it has no handler for.
    """
    for number in _SIGNALS:
        signal.signal(number, _end)


def ignore() -> None:
    """From here on the signals do nothing: the supervisor alone says when this process ends.

    A Ctrl-C, and systemd by default, signal every process of a service at once; the updater would end first, and the
    supervisor's own word would pass for a second signal, which cuts the drain delay short.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def no_more() -> None:
    """Keeps further signals away from a process that has ended in order and has only to return.

    One that comes now would make its exit code that of a process which was killed.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def _end(_number: int, _frame: Any) -> None:
    os._exit(0)
