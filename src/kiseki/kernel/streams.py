"""Names of streams: `<AggregateType>-<id>`, the unit of order and of optimistic concurrency."""

from __future__ import annotations

import re
from typing import Self

from kiseki.kernel.text import InvalidValue

__all__ = ["AGGREGATE_TYPE", "STREAM", "StreamId", "aggregate_type_of", "stream_name"]

AGGREGATE_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9]*")
STREAM = re.compile(r"[A-Za-z][A-Za-z0-9]*-[A-Za-z0-9._~-]{1,200}")
_ID = re.compile(r"[A-Za-z0-9._~-]{1,200}")


class StreamId(str):
    """The id part of a stream's name, as clients see it: 1 to 200 of letters, digits and `. _ ~ -`.

    kiseki's own ids are ULIDs of 26 characters; a context may use others (a stock keeping unit, say).
    Raises InvalidValue (INVALID_ID) for anything else.
    """

    __slots__ = ()

    def __new__(cls, value: str) -> Self:
        if not _ID.fullmatch(value):
            raise InvalidValue("INVALID_ID", "must be 1 to 200 letters, digits or . _ ~ -")
        return super().__new__(cls, value)


def stream_name(aggregate_type: str, stream_id: str) -> str:
    """The full name of the stream of one aggregate."""
    return f"{aggregate_type}-{stream_id}"


def aggregate_type_of(stream: str) -> str:
    """The aggregate type in a full stream name (the part before the first `-`)."""
    return stream.partition("-")[0]
