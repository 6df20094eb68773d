"""Asking a process of this service over its private socket. Used by the supervisor of `--workers`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import NamedTuple

from kiseki.kernel.errors import KisekiError

__all__ = ["NoAnswer", "Reply", "ask"]


class NoAnswer(KisekiError):
    """A process does not answer: it is starting, stuck or gone."""

    code = "NO_ANSWER"


class Reply(NamedTuple):
    """What a process answered."""

    status: int
    body: bytes


async def ask(socket: Path, target: str, *, within: float) -> Reply:
    """GET of a target on the management app behind a Unix socket, in `within` seconds. Raises NoAnswer."""
    try:
        async with asyncio.timeout(within):
            reader, writer = await asyncio.open_unix_connection(str(socket))
            try:
                writer.write(f"GET {target} HTTP/1.1\r\nHost: process\r\nConnection: close\r\n\r\n".encode())
                answer = await reader.read(-1)
            finally:
                writer.close()
    except TimeoutError as problem:
        raise NoAnswer(f"no answer within {within:g} s") from problem
    except OSError as problem:
        raise NoAnswer("it can't be reached") from problem
    head, _, body = answer.partition(b"\r\n\r\n")
    try:
        return Reply(int(head.split(b" ", 2)[1]), body)
    except (IndexError, ValueError) as problem:
        raise NoAnswer("it did not answer in full") from problem
