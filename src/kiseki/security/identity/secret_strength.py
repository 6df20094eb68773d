"""Whether a secret of HS256 can be guessed. Used by `keys`.

The rule: a secret has at least 32 bytes, and at least 256 bits when each character counts as much as one drawn from the
smallest usual alphabet that holds all of them (hex digits 4 bits, base64 6, printable ASCII 6.6, any bytes 8). At least
192 bits stay when what is not random is taken out: repetitions of a pattern, runs of one character, rising and falling
sequences, rows of the keyboard, and words that stand in examples. And its bytes are as mixed as 128 random bits. So 64
hex digits, 43 characters of base64 or 32 random bytes are enough: `openssl rand -base64 33`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Final

__all__ = ["MIN_SECRET_BITS", "MIN_SECRET_BYTES", "weakness"]

MIN_SECRET_BYTES: Final = 32
MIN_SECRET_BITS: Final = 256

_MAX_SECRET_BYTES: Final = 1024
_MIN_RANDOM_BITS: Final = 192
"""Less than 256, since random text holds a short sequence now and then."""
_MIN_OBSERVED_BITS: Final = 128
"""By the frequencies of its bytes. A random secret of 256 bits has more than 150."""
_WORDS: Final = re.compile(
    rb"""(?ix) chang[ei][-_ ]?(me|it|this)? | secrets? | passwords? | passw(or|0r)d | passphrase | default | example
    | sample | testing | kiseki | administrator | letmein | qwerty(uiop)? | asdfgh(jkl)? | zxcvbn(m)? | insecure
    | development | production | placeholder | replace[-_ ]?(me|this) | supersecret | your[-_ ]?(256|512)?[-_ ]?bit
    | hunter2 | correct[-_ ]?horse | battery[-_ ]?staple | signing[-_ ]?key | deadbeef | cafebabe | private[-_ ]?key """
)
_ALPHABETS: Final = (
    (re.compile(rb"[0-9]*"), 10),
    (re.compile(rb"[0-9a-f]*|[0-9A-F]*"), 16),
    (re.compile(rb"[0-9a-f-]*|[0-9A-F-]*"), 16),
    (re.compile(rb"[a-z ]*|[A-Z ]*"), 26),
    (re.compile(rb"[A-Za-z0-9+/=_-]*"), 64),
    (re.compile(rb"[A-Za-z ]*"), 52),
    (re.compile(rb"[ -~]*"), 95),
)


def weakness(secret: bytes) -> str | None:
    """What is wrong with a secret, as the end of a sentence; None for a good one."""
    if len(secret) < MIN_SECRET_BYTES:
        return f"has {len(secret)} bytes and needs {MIN_SECRET_BYTES}"
    if len(secret) > _MAX_SECRET_BYTES:
        return f"has {len(secret)} bytes, more than {_MAX_SECRET_BYTES}"
    if secret.lstrip().startswith((b"-----BEGIN", b"ssh-")) or b'"kty"' in secret:
        return "is a key file; HS256 needs a secret of its own"
    if len(set(secret)) == 1:
        return "repeats one byte"
    if _bits(secret) < MIN_SECRET_BITS:
        return f"holds at most {_bits(secret):.0f} bits and needs {MIN_SECRET_BITS}"
    random = _without_sequences(_WORDS.sub(b"", secret[: _period(secret)]))
    if _bits(random) < _MIN_RANDOM_BITS:
        return "is made of words, sequences or repetitions"
    if _observed_bits(random) < _MIN_OBSERVED_BITS:
        return "uses few different bytes"
    return None


def _bits(text: bytes) -> float:
    alphabet = next((size for pattern, size in _ALPHABETS if pattern.fullmatch(text)), 256)
    return len(text) * math.log2(alphabet)


def _period(secret: bytes) -> int:
    """The length of the shortest pattern whose repetition it is."""
    for period in range(1, len(secret) // 2 + 1):
        if secret[period:] == secret[:-period]:
            return period
    return len(secret)


def _without_sequences(secret: bytes) -> bytes:
    """Without the rest of runs of four or more bytes that stay, rise or fall by the same small step."""
    kept = bytearray()
    start = 0
    while start < len(secret):
        end = start + 1
        if end < len(secret):
            step = secret[end] - secret[start]
            while end < len(secret) and secret[end] - secret[end - 1] == step:
                end += 1
            if end - start >= 4 and abs(step) <= 2:
                kept.append(secret[start])
                start = end
                continue
        kept.append(secret[start])
        start += 1
    return bytes(kept)


def _observed_bits(secret: bytes) -> float:
    counts = Counter(secret)
    return -sum(count * math.log2(count / len(secret)) for count in counts.values())
