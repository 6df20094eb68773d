"""What throw-away servers share: a free port, an environment that leads nowhere else, ending with the test run."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from collections.abc import Callable, Mapping
from typing import Final

__all__ = ["clean_environment", "die_with_parent", "free_port"]

_PR_SET_PDEATHSIG: Final = 1
# Loaded here: between fork and exec nothing may be imported or loaded.
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def free_port() -> int:
    """A port of loopback that is free now; another process may still take it first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def die_with_parent(how: signal.Signals) -> Callable[[], None]:
    """For `preexec_fn`: the server gets this signal when the test run is gone, however it ended (Linux)."""

    def arrange() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, how)

    return arrange


def clean_environment(more: Mapping[str, str]) -> dict[str, str]:
    """The environment without what would lead a server or client of ours elsewhere."""
    proxies = {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PG", "AWS_", "KISEKI_")) and name.lower() not in proxies
    }
    return {**kept, **more}
