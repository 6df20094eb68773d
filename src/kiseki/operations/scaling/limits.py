"""How many connections a PostgreSQL server takes: as a number, or from the instance class of RDS. Used by `plan`."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from kiseki.operations.errors import OperationFailed

__all__ = ["OWN_RESERVED", "RDS_RESERVED", "Limit", "class_memory", "limit_of", "rds_connections", "smallest_memory"]

OWN_RESERVED: Final = 3
"""`superuser_reserved_connections`, unless set otherwise."""
RDS_RESERVED: Final = 5
"""The same on RDS, with its `rds.rds_superuser_reserved_connections`."""

# LEAST({DBInstanceClassMemory/9531392}, 5000):
# https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/CHAP_Limits.html#RDS_Limits.MaxConnections
_BYTES_EACH: Final = 9_531_392
_AT_MOST: Final = 5_000
_GIB: Final = 1_024**3
_TAKEN: Final = 0.10
_TAKEN_LEAST: Final = 0.3 * _GIB
"""DBInstanceClassMemory is less than the class's memory: the system and RDS itself take some. AWS does not say how
much; this is assumed, and `kiseki scale show` asks the server."""

_CLASS: Final = re.compile(r"db\.(?P<family>[a-z]+)[0-9]+[a-z]*\.(?P<size>[0-9]*[a-z]+)")
_PER_LARGE: Final = {"t": 8, "m": 8, "r": 16}
"""GiB of a `large`, by the letter of the family."""
_SMALL: Final = {"micro": 1, "small": 2, "medium": 4}


class Limit(NamedTuple):
    """What a server takes."""

    connections: int
    """max_connections."""
    reserved: int
    """Of those, what an ordinary account can't have."""
    source: str
    """Where the number is from, in words."""


def limit_of(text: str) -> Limit:
    """From `--limit`: a max_connections, or a class such as db.r6g.large. Raises OperationFailed."""
    if text.isdecimal() and 0 < int(text) < 1_000_000:
        return Limit(int(text), OWN_RESERVED, "as given")
    memory = class_memory(text)
    return Limit(rds_connections(memory), RDS_RESERVED, f"{text}, {memory // _GIB} GiB")


def class_memory(name: str) -> int:
    """Bytes of an instance class of the families t, m and r. Raises OperationFailed."""
    match = _CLASS.fullmatch(name)
    family = match["family"] if match is not None else ""
    size = match["size"] if match is not None else ""
    if family == "t" and size in _SMALL:
        return _SMALL[size] * _GIB
    large = _PER_LARGE.get(family)
    if large is not None:
        if size == "large":
            return large * _GIB
        times, is_xlarge, rest = size.partition("xlarge")
        if is_xlarge and not rest and (not times or (times.isdecimal() and 2 <= int(times) <= 48)):
            return large * 2 * int(times or 1) * _GIB
    raise OperationFailed(
        f"the limit {name[:60]!r} is neither a number nor a class of the families db.t, db.m and db.r; give the "
        "max_connections of the server as a number"
    )


def rds_connections(memory: int) -> int:
    """The max_connections that RDS gives an instance of so many bytes unless its parameter group says otherwise."""
    return min(int((memory - max(_TAKEN * memory, _TAKEN_LEAST)) / _BYTES_EACH), _AT_MOST)


def smallest_memory(connections: int) -> int | None:
    """The GiB of the smallest instance that takes so many connections by itself; None where none does."""
    for gib in (1, 2, 4, 8, 16, 32, 64, 128):
        if rds_connections(gib * _GIB) >= connections:
            return gib
    return None
