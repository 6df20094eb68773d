"""`ConsistencyToken`: what a client has written, so that a later query can wait until it sees it. Pure.

On the wire: `v1.` and base64url (RFC 4648, without padding) of `<stream>:<sequence number>` pairs joined by `,`, oldest
first. Opaque to clients: only `parse` and `encode` know the form, and another form gets another version. A token is no
secret and grants nothing; a made-up one makes its query wait, in bounds, and no one else's.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from typing import Final, Self

from kiseki.kernel.errors import KisekiError
from kiseki.kernel.streams import STREAM

__all__ = ["ConsistencyToken", "InvalidToken"]

_PREFIX: Final = "v1."
_MAX_PAIRS: Final = 16
_MAX_CHARACTERS: Final = 8_000
"""Of an encoded token; far above 16 ordinary streams, and below what HTTP servers take as a header."""
_MAX_STREAM: Final = 255
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,17}")
"""Below 10^18, which fits in 64 bits."""


class InvalidToken(KisekiError):
    """A consistency token that can't be read. The wire contract answers it with 400."""

    code = "INVALID_TOKEN"

    def __init__(self) -> None:
        super().__init__("the consistency token can't be read; send one exactly as it was received, or none")


class ConsistencyToken:
    """Up to 16 (stream, sequence number) pairs. Immutable; adding gives a new token.

    The number of a stream is the highest one it was given. When a 17th stream comes in, the one that was written
    longest ago is forgotten: a query no longer waits for it.
    """

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Iterable[tuple[str, int]] = ()) -> None:
        """Pairs from oldest to newest."""
        kept: dict[str, int] = {}
        for stream, number in pairs:
            before = kept.pop(stream, 0)
            if len(stream) <= _MAX_STREAM:
                kept[stream] = max(before, number)
        newest = list(kept.items())[-_MAX_PAIRS:]
        self._pairs: tuple[tuple[str, int], ...] = tuple(newest)

    @property
    def pairs(self) -> tuple[tuple[str, int], ...]:
        """The pairs, from the one written longest ago to the newest."""
        return self._pairs

    def with_stream(self, stream: str, sequence_number: int) -> Self:
        """The token after a write to a stream."""
        return type(self)((*self._pairs, (stream, sequence_number)))

    def merge(self, other: ConsistencyToken) -> Self:
        """The token of both; `other` counts as the newer one."""
        return type(self)((*self._pairs, *other._pairs))

    def encode(self) -> str:
        """The token as it goes over the wire: ASCII, safe in a header."""
        plain = ",".join(f"{stream}:{number}" for stream, number in self._pairs)
        return _PREFIX + base64.urlsafe_b64encode(plain.encode("ascii")).rstrip(b"=").decode("ascii")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The token of an encoded one, which must be exactly as `encode` made it. Raises InvalidToken."""
        if len(text) > _MAX_CHARACTERS or not text.isascii() or not text.startswith(_PREFIX):
            raise InvalidToken
        body = text[len(_PREFIX) :]
        try:
            plain = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True).decode("ascii")
        except (binascii.Error, UnicodeDecodeError) as problem:
            raise InvalidToken from problem
        token = cls(_parse_pairs(plain))
        # One spelling for each token: no second form that one reader takes and another does not.
        if token.encode() != text:
            raise InvalidToken
        return token

    def __bool__(self) -> bool:
        return bool(self._pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConsistencyToken) and self._pairs == other._pairs

    def __hash__(self) -> int:
        return hash(self._pairs)

    def __repr__(self) -> str:
        return f"ConsistencyToken({self._pairs!r})"


def _parse_pairs(plain: str) -> list[tuple[str, int]]:
    pairs = []
    for part in plain.split(",") if plain else ():
        stream, _, number = part.partition(":")
        if not STREAM.fullmatch(stream) or not _NUMBER.fullmatch(number):
            raise InvalidToken
        pairs.append((stream, int(number)))
    return pairs
