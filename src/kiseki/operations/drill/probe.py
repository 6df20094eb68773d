"""`watch`: looks at a system from outside, as a client would, and says when it is down and when it is back.

Used by `kiseki dr probe`, which runs apart from what it watches, and by the drill.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from kiseki.operations.errors import OperationFailed

__all__ = ["Change", "ProbeAddress", "probe_address", "watch"]

_TIMEOUT: Final = 5.0


class ProbeAddress(NamedTuple):
    """One thing to ask for: a good answer is 200."""

    secure: bool
    host: str
    port: int
    path: str


class Change(NamedTuple):
    """What was found out, and when."""

    up: bool
    at: float
    """When the look began that settled it, of time.monotonic(): one clock for all processes of a machine."""
    since: float
    """When the first look began that said so."""
    cause: str


def probe_address(url: str) -> ProbeAddress:
    """What a URL asks to be looked at. Raises OperationFailed."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise OperationFailed("what is to be watched is a URL such as http://127.0.0.1:8558/ready")
    return ProbeAddress(parts.scheme == "https", parts.hostname, port, parts.path or "/ready")


def watch(
    addresses: Sequence[ProbeAddress],
    *,
    every: float,
    failures: int,
    tell: Callable[[Change], None],
    stop: threading.Event,
) -> None:
    """Looks every so many seconds until `stop`. It is down after so many looks in a row that found something wrong, up
    after one that found nothing; `tell` hears of each change, and of what the first look found.
    """
    state: bool | None = None
    bad = 0
    since = 0.0
    while True:
        began = time.monotonic()
        cause = _problem(addresses)
        if cause is None:
            if state is not True:
                tell(Change(True, began, began, ""))
            state, bad = True, 0
        else:
            bad += 1
            if bad == 1:
                since = began
            if bad >= failures and state is not False:
                tell(Change(False, time.monotonic(), since, cause))
                state = False
        if stop.wait(max(0.0, began + every - time.monotonic())):
            return


def _problem(addresses: Sequence[ProbeAddress]) -> str | None:
    for address in addresses:
        kind = http.client.HTTPSConnection if address.secure else http.client.HTTPConnection
        connection = kind(address.host, address.port, timeout=_TIMEOUT)
        try:
            connection.request("GET", address.path)
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as problem:
            return f"{address.host}:{address.port}{address.path}: {type(problem).__name__}"
        finally:
            connection.close()
        if status != 200:
            return f"{address.host}:{address.port}{address.path}: status {status}"
    return None
