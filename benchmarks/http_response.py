"""A parser for the HTTP/1.1 responses that the load generator reads; strict about what it skips."""

from dataclasses import dataclass

HEAD_END = b"\r\n\r\n"
VERSION = b"http/1.1 "
CONTENT_LENGTH = b"content-length:"
TRANSFER_ENCODING = b"transfer-encoding:"


class ResponseError(Exception):
    """The bytes are not a response with a content length."""


@dataclass(frozen=True, slots=True)
class Response:
    """One complete response and the number of bytes that it took from the buffer."""

    status: int
    body: bytes
    size: int


def parse_response(buffer: bytes) -> Response | None:
    """The response at the start of the buffer, or None while it is incomplete.

    Raises ResponseError for anything but a final HTTP/1.1 response with one Content-Length.
    """
    head_end = buffer.find(HEAD_END)
    if head_end < 0:
        return None
    status_line, *fields = buffer[:head_end].lower().split(b"\r\n")
    body_start = head_end + len(HEAD_END)
    size = body_start + _content_length(fields)
    status = _status(status_line)
    if len(buffer) < size:
        return None
    return Response(status=status, body=buffer[body_start:size], size=size)


def _status(line: bytes) -> int:
    code = line[len(VERSION) : len(VERSION) + 3]
    if not line.startswith(VERSION) or not code.isdigit():
        raise ResponseError(f"not an HTTP/1.1 status line: {line[:80]!r}")
    status = int(code)
    if status < 200:
        raise ResponseError(f"an interim response ({status}) was not asked for")
    return status


def _content_length(fields: list[bytes]) -> int:
    lengths = [field for field in fields if field.startswith(CONTENT_LENGTH)]
    if any(field.startswith(TRANSFER_ENCODING) for field in fields):
        raise ResponseError("a transfer encoding is not supported here")
    if len(lengths) != 1:
        raise ResponseError(f"expected one Content-Length, found {len(lengths)}")
    value = lengths[0][len(CONTENT_LENGTH) :].strip()
    if not value.isdigit():
        raise ResponseError(f"not a content length: {value[:40]!r}")
    return int(value)
