"""`Load`: clients that create and rename accounts over HTTP, and remember every answer, as the drill's witness.

What was acknowledged here is what a recovery is judged by.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import threading
import time
from collections import Counter
from typing import Any, Final, NamedTuple

__all__ = ["Acknowledged", "Load", "LoadReport"]

_TIMEOUT: Final = 5.0
_PAUSE: Final = 0.05
"""Seconds that a client leaves a service alone that did not answer."""
_RENAMES: Final = 4
_PATH: Final = "/api/graphql"
_CREATE: Final = "mutation ($i: CreateUserAccountInput!) { createUserAccount(input: $i) { id } }"
_RENAME: Final = "mutation ($i: RenameUserAccountInput!) { renameUserAccount(input: $i) { id } }"


class Acknowledged(NamedTuple):
    """A command that was answered as done."""

    stream: str
    sequence_number: int
    at: float
    """When the answer was read, of time.monotonic()."""


class LoadReport(NamedTuple):
    """What the clients saw."""

    acknowledged: list[Acknowledged]
    failed: int
    """Requests that had no good answer."""
    longest: float
    """The longest good answer, seconds."""


class Load:
    """Clients, each with a connection of its own, from `start` to `stop`."""

    def __init__(self, port: int, *, clients: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self._first = threading.Event()
        self._clients = [_Client(port, number, self._stop, self._first) for number in range(clients)]

    def start(self) -> None:
        """Begins."""
        for client in self._clients:
            client.start()

    def wait_first(self, seconds: float) -> bool:
        """Whether a command was acknowledged within so many seconds."""
        return self._first.wait(seconds)

    def stop(self) -> LoadReport:
        """Ends, and gives what was seen."""
        self._stop.set()
        for client in self._clients:
            client.join()
        return LoadReport(
            acknowledged=[one for client in self._clients for one in client.acknowledged],
            failed=sum(client.failed for client in self._clients),
            longest=max((client.longest for client in self._clients), default=0.0),
        )


class _Client(threading.Thread):
    def __init__(self, port: int, number: int, stop: threading.Event, first: threading.Event) -> None:
        super().__init__(name=f"drill client {number}", daemon=True)
        self._port = port
        self._number = number
        self._stopping = stop
        self._first = first
        self._counts = Counter[str]()
        self.acknowledged: list[Acknowledged] = []
        self.failed = 0
        self.longest = 0.0

    def run(self) -> None:
        connection: http.client.HTTPConnection | None = None
        account, renamed = "", 0
        while not self._stopping.is_set():
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT)
            self._counts["sent"] += 1
            name = {"firstName": f"Drill {self._number}", "lastName": f"Number {self._counts['sent']}"}
            try:
                if not account or renamed == _RENAMES:
                    address = f"drill-{self._number}-{self._counts['sent']}@example.com"
                    account = self._ask(connection, _CREATE, {**name, "emailAddress": address})
                    renamed = 0
                else:
                    self._ask(connection, _RENAME, {**name, "userAccountId": account})
                    renamed += 1
            except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
                # Whatever it was, the command was not acknowledged; that is counted.
                self.failed += 1
                connection.close()
                connection = None
                account = ""
                self._stopping.wait(_PAUSE)
        if connection is not None:
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection, document: str, given: dict[str, Any]) -> str:
        """The id in a good answer, which is noted. Raises what the client may meet."""
        began = time.monotonic()
        body = json.dumps({"query": document, "variables": {"i": given}})
        connection.request("POST", _PATH, body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        answer = json.loads(reply.read())
        if reply.status != 200 or answer.get("errors"):
            raise ValueError(f"status {reply.status}")
        now = time.monotonic()
        (field,) = answer["data"].values()
        stream, number = _place(answer["extensions"]["consistencyToken"])
        self.longest = max(self.longest, now - began)
        self.acknowledged.append(Acknowledged(stream, number, now))
        self._first.set()
        return str(field["id"])


def _place(token: str) -> tuple[str, int]:
    """The stream and the sequence number that a consistency token of one command names."""
    text = token.partition(".")[2]
    try:
        plain = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    except binascii.Error as problem:
        raise ValueError("a consistency token can't be read") from problem
    stream, _, number = plain.rpartition(":")
    return stream, int(number)
