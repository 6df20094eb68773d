"""Looks for a person in every byte of files, in every form that text takes on its way to a disk."""

from __future__ import annotations

import base64
import json
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

__all__ = ["Found", "PersonSearch", "forms"]

_WINDOW = 10
"""Bytes of UTF-8 in a row that are enough to know a name by, when the rest was overwritten."""


class Found(NamedTuple):
    """Where, and in what form."""

    path: Path
    form: str
    offset: int


def forms(text: str) -> Iterator[tuple[str, bytes]]:
    """A text in all of its forms, each with a name."""
    variants = {
        "as given": text,
        **{form: unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")},
        "folded": text.casefold(),
        "folded NFKC": unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()),
        "folded NFD": unicodedata.normalize("NFD", text.casefold()),
        "upper": text.upper(),
        "lower": text.lower(),
    }
    for name, variant in variants.items():
        raw = variant.encode()
        for encoding in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le"):
            yield f"{name} {encoding}", variant.encode(encoding)
        escaped = json.dumps(variant)[1:-1].encode()
        yield f"{name} JSON", escaped
        yield f"{name} JSON upper", _upper_escapes(escaped)
        yield f"{name} Python", variant.encode("unicode_escape")
        yield f"{name} bytes repr", repr(raw)[2:-1].encode()
        for safe in ("", "/", "-.@", "@"):
            percent = quote(variant, safe=safe)
            yield f"{name} percent", percent.encode()
            yield f"{name} percent lower", _lower_percent(percent).encode()
        yield f"{name} hex", raw.hex().encode()
        yield f"{name} HEX", raw.hex().upper().encode()
        for encoding in ("utf-8", "utf-16-le"):
            yield from ((f"{name} base64 {encoding}", one) for one in _base64(variant.encode(encoding)))


def _upper_escapes(escaped: bytes) -> bytes:
    parts = escaped.split(b"\\u")
    return b"\\u".join([parts[0], *(part[:4].upper() + part[4:] for part in parts[1:])])


def _lower_percent(text: str) -> str:
    parts = text.split("%")
    return "%".join([parts[0], *(part[:2].lower() + part[2:] for part in parts[1:])])


def _base64(raw: bytes) -> Iterator[bytes]:
    """At each of the three alignments, in both alphabets, without the letters that neighbours have a part in."""
    for offset in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            whole = encode(b"\0" * offset + raw)
            yield whole[-(-offset * 8 // 6) : (offset + len(raw)) * 8 // 6]


class PersonSearch:
    """Knows some texts of a person, and finds them."""

    def __init__(self, *texts: str) -> None:
        self._needles: dict[bytes, str] = {}
        for text in texts:
            assert len(text.encode()) >= _WINDOW, "too short to be unmistakable"
            for name, needle in forms(text):
                self._needles.setdefault(needle, f"{text!a} {name}")
            raw = text.encode()
            for start in range(len(raw) - _WINDOW + 1):
                self._needles.setdefault(raw[start : start + _WINDOW], f"{text!a} part at {start}")

    def in_bytes(self, content: bytes) -> list[tuple[str, int]]:
        """The forms found, and where first."""
        return [(name, content.find(needle)) for needle, name in self._needles.items() if needle in content]

    def in_files(self, *places: Path) -> list[Found]:
        """All files at, or below, some places. A file that goes away meanwhile is passed over."""
        found = []
        for path in _files(places):
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                continue
            found += [Found(path, name, offset) for name, offset in self.in_bytes(content)]
        return found


def _files(places: Iterable[Path]) -> Iterator[Path]:
    for place in places:
        if place.is_dir():
            yield from (path for path in sorted(place.rglob("*")) if path.is_file())
        elif place.exists():
            yield place
