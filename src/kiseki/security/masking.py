"""`Masker`: takes what looks like a secret out of text. Used for every log line and every audit record.

The second wall, not the first: nothing should hand a secret to a log at all. It knows forms (bearer tokens, JWTs,
passwords in URLs, AWS keys, PEM blocks, `password=`) and the exact secrets of this process, as far as it was told them.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, MutableMapping
from typing import Any, Final
from urllib.parse import quote

__all__ = ["MASK", "Masker"]

MASK: Final = "[masked]"

_SHORTEST: Final = 12
"""Characters of an exact secret; shorter ones would be found inside innocent words."""
_MOST: Final = 1_000
"""Forms of exact secrets that are kept; the oldest go first, so that rotations do not add up."""
_DEPTH: Final = 6

# Also one without an end; never further than the text in quotes that it stands in.
_PEM: Final = re.compile(
    r"-----BEGIN [A-Z0-9 ]{1,40}-----(?:[^\"'\\]|\\+[^\"'\\])*?(?:-----END [A-Z0-9 ]{1,40}-----|(?=\\*[\"'])|\\*\Z)"
)
_JWT: Final = re.compile(r"eyJ[A-Za-z0-9_-]{7,}(?:\.[A-Za-z0-9_-]*){0,4}")
# A word without digits after `bearer` is mostly prose, unless it is long.
_SCHEME: Final = re.compile(
    r"\b(bearer[ \t]{1,8}(?=[^\s\"'\\]{0,400}\d|[^\s\"'\\]{20})|"
    r"basic[ \t]{1,8}(?=[^\s\"'\\]{16}))[A-Za-z0-9._~+/=:-]{6,}",
    re.IGNORECASE,
)
_AUTHORIZATION: Final = re.compile(
    r"(authorization(?:\\{0,8}[\"'])?[ \t]{0,4}[:=,][ \t]{0,4}(?:b?\\{0,8}[\"'])?)(?!\[masked\])[^\s\"'\\,;}\])]{4,}"
    r"(?:[ \t]{1,4}[^\s\"'\\,;}\])]{4,})?",
    re.IGNORECASE,
)
# As far as the last `@` of the word: passwords are often put into URLs unescaped.
_URL: Final = re.compile(r"(://[^\s:/@\"'<>\\]{0,256}:)[^\s\"'<>\\]{1,256}@")
_AWS_ID: Final = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")
_AWS_SECRET: Final = re.compile(r"(?<![A-Za-z0-9+/=_-])[A-Za-z0-9+/]{40}(?![A-Za-z0-9+/=_-])")
_NAMES: Final = (
    r"(?:passw(?:or)?d|passphrase|secret(?:[_-]?(?:id|access[_-]?key))?|token|(?:api|access|private)[_-]?key|signature)"
)
"""How names of secrets end; what stands before (`client_`, `X-Amz-Security-`) does not matter."""
# Two ways to write it, so that a line of JSON stays one: a quoted name has a quoted value.
_QUOTED: Final = re.compile(
    rf"({_NAMES}\\{{0,8}}[\"'][ \t]?[:,][ \t]?b?\\{{0,8}}[\"'])(?!\[masked\])[^\"'\\]{{4,}}", re.IGNORECASE
)
_PLAIN: Final = re.compile(
    rf"({_NAMES}(?:=|:[ \t]?(?=[^\s\"'\\]{{0,400}}\d)))(?!\[masked\])[^\s\"'\\,;&}}\])]{{4,}}", re.IGNORECASE
)
_NAME: Final = re.compile(rf"{_NAMES}\\{{0,8}}[\"']?[ \t]?[=:,]")
_SECRET_NAME: Final = re.compile(rf"[^\n]{{0,80}}(?:{_NAMES}|authorization)", re.IGNORECASE)
_HINTS: Final = ("passw", "passphrase", "secret", "token", "api", "access", "private", "signature")


class Masker:
    """Masks text. Keeps the exact secrets that it is told, and shows them to nobody."""

    __slots__ = ("_exact",)

    def __init__(self) -> None:
        self._exact: dict[str, None] = {}

    def __repr__(self) -> str:
        return "Masker()"

    def add(self, secret: str | bytes) -> None:
        """From now on this value is masked wherever it stands: as it is, escaped for URLs or JSON, in hex and base64.

        Values under 12 characters are left to the forms: they would be found in innocent text.
        """
        raw = secret.encode("utf-8", "surrogatepass") if isinstance(secret, str) else secret
        forms = {raw.hex(), base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode().rstrip("=")}
        try:
            text = raw.decode().strip()
        except UnicodeDecodeError:
            text = ""
        if len(raw) < _SHORTEST or (text and len(text) < _SHORTEST):
            return
        if text:
            forms |= {text, quote(text, safe=""), json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
        for form in sorted(forms, key=len, reverse=True):
            self._exact[form] = None
        while len(self._exact) > _MOST:
            del self._exact[next(iter(self._exact))]

    def mask(self, text: str) -> str:
        """The text without what looks like a secret. Takes time in proportion to its length."""
        for secret in self._exact:
            if secret in text:
                text = text.replace(secret, MASK)
        # Looking for a word is far cheaper than a search for a form, and almost no line has any of them.
        if "-----BEGIN" in text:
            text = _PEM.sub(MASK, text)
        if "eyJ" in text:
            text = _JWT.sub(MASK, text)
        if "://" in text and "@" in text:
            text = _URL.sub(rf"\1{MASK}@", text)
        if "AKIA" in text or "ASIA" in text:
            text = _AWS_ID.sub(MASK, text)
        lower = text.lower()
        if "bearer" in lower or "basic" in lower:
            text = _SCHEME.sub(_keep_scheme, text)
        if "authorization" in lower:
            text = _AUTHORIZATION.sub(rf"\1{MASK}", text)
        if any(hint in lower for hint in _HINTS) and _NAME.search(lower):
            text = _PLAIN.sub(rf"\1{MASK}", _QUOTED.sub(rf"\1{MASK}", text))
        if len(text) >= 40:
            text = _AWS_SECRET.sub(_mask_mixed, text)
        return text

    def processor(self, _logger: Any, _method: str, event: Any) -> Any:
        """A structlog processor: masks a rendered line, or all text in the fields of an event.

        Tracebacks are text only after `format_exc_info`, so it stands behind that, or behind the renderer.
        """
        if isinstance(event, str):
            return self.mask(event)
        if isinstance(event, MutableMapping):
            for name, value in event.items():
                event[name] = MASK if _is_secret(name, value) else self._masked(value, _DEPTH)
        return event

    def _masked(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return self.mask(value)
        if isinstance(value, bytes | bytearray):
            return self.mask(value.decode("utf-8", "replace"))
        if value is None or isinstance(value, int | float):
            return value
        if isinstance(value, BaseException):
            return self.mask(repr(value))
        if not isinstance(value, Mapping | list | tuple | set | frozenset):
            return value
        if not depth:
            return MASK
        if isinstance(value, Mapping):
            return {
                name: MASK if _is_secret(name, inner) else self._masked(inner, depth - 1)
                for name, inner in value.items()
            }
        if hasattr(value, "_fields"):  # a named tuple
            return type(value)(*(self._masked(inner, depth - 1) for inner in value))
        return type(value)(self._masked(inner, depth - 1) for inner in value)


def _is_secret(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, str | bytes) and bool(_SECRET_NAME.fullmatch(name))


def _keep_scheme(found: re.Match[str]) -> str:
    return f"{found[1]}{MASK}"


def _mask_mixed(found: re.Match[str]) -> str:
    """A secret of AWS has 40 characters of base64; a SHA-1 in hex has 40 too, and is none."""
    text = found[0]
    mixed = any(map(str.isupper, text)) and any(map(str.islower, text)) and any(map(str.isdigit, text))
    return MASK if mixed else text
