"""Sending answers: the headers that every response has, and closing without cutting off a client that still sends.

Used by the HTTP shell and the protocol guard.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final, TypeAlias

from kiseki.graphql.answers import Answer

__all__ = ["CLOSE", "HSTS", "SECURITY_HEADERS", "Page", "Receive", "Scope", "Send", "discard", "send_answer"]

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Mapping[str, Any]]]
Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]

_COMMON: Final = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
)
SECURITY_HEADERS: Final = (*_COMMON, (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"))
"""On every response that is not a page."""

HSTS: Final = (b"strict-transport-security", b"max-age=31536000")
"""A year (RFC 6797), on every response over TLS. Names below this one are somebody else's to decide about."""

CLOSE: Final = (b"connection", b"close")


class Page(Answer, frozen=True):
    """An answer for a browser to show; it brings its own strict `Content-Security-Policy`."""


async def send_answer(
    send: Send,
    answer: Answer,
    *,
    correlation_id: str,
    extra: tuple[tuple[bytes, bytes], ...] = (),
    close: bool = False,
    unread: Receive | None = None,
    linger: float = 5.0,
) -> None:
    """Sends an answer, with the headers of every answer and `extra` ones. With `close` it also asks the client to end
    the connection.

    `unread` is given when the client may still be sending a body that nobody wants: the answer goes out at once, and
    what arrives is thrown away for up to `linger` seconds before the connection closes. Closing at once would reset
    it, and the client would never see the answer (RFC 9112, 9.6).
    """
    headers = [
        *answer.headers,
        # RFC 9110, 8.6: an answer without content has no length either.
        *(() if answer.status == 204 else ((b"content-length", str(len(answer.body)).encode()),)),
        *(_COMMON if isinstance(answer, Page) else SECURITY_HEADERS),
        (b"x-correlation-id", correlation_id.encode()),
        *extra,
    ]
    if close:
        headers.append(CLOSE)
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    if unread is None:
        await send({"type": "http.response.body", "body": answer.body})
        return
    await send({"type": "http.response.body", "body": answer.body, "more_body": True})
    await discard(unread, linger)
    await send({"type": "http.response.body", "body": b""})


async def discard(receive: Receive, seconds: float) -> None:
    """Throws away the rest of a request's body, for at most this long."""
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
    except TimeoutError:
        pass
