"""Media types: what a client sends and what it can read. Used by the HTTP apps."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["accepts_json", "negotiate"]

# RFC 9110, 5.6: no two neighbouring parts match the same character, so that matching can't take exponential time.
_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER: Final = rf';[ \t]*(?:({_WORD})=({_WORD}|"[^"\\]*")[ \t]*)?'
_TYPE: Final = re.compile(rf"[ \t]*({_WORD}/{_WORD})[ \t]*((?:{_PARAMETER})*)")
_PARAMETERS: Final = re.compile(_PARAMETER)
_QUALITY: Final = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")

_GRAPHQL: Final = "application/graphql-response+json"
_JSON: Final = "application/json"


def accepts_json(content_type: bytes | None) -> bool:
    """Whether a request's Content-Type is `application/json`, with no parameter but `charset=utf-8`."""
    if content_type == b"application/json":
        return True
    if content_type is None:
        return False
    match = _TYPE.fullmatch(content_type.decode("latin-1"))
    if match is None or match[1].lower() != _JSON:
        return False
    return all(
        not name or (name.lower() == "charset" and value.strip('"').lower() in ("utf-8", "utf8"))
        for name, value in _PARAMETERS.findall(match[2])
    )


def negotiate(accept: bytes | None) -> bool | None:
    """Which body a client wants (RFC 9110, 12.5.1): True for `application/graphql-response+json`, False for
    `application/json`, None when it can read neither."""
    if not accept or accept in (b"*/*", b"application/json"):
        return False
    graphql = json = -1.0
    graphql_rank = json_rank = -1
    for part in accept.decode("latin-1").split(","):
        match = _TYPE.fullmatch(part)
        if match is None:
            continue
        media, quality = match[1].lower(), _quality(match[2])
        rank = 0 if media == "*/*" else 1 if media == "application/*" else 2
        if (media == _GRAPHQL or rank < 2) and rank > graphql_rank:
            graphql, graphql_rank = quality, rank
        if (media == _JSON or rank < 2) and rank > json_rank:
            json, json_rank = quality, rank
    if graphql <= 0 and json <= 0:
        return None
    # A client that names both alike knows the newer one; one that names neither gets what everyone can read.
    return graphql > json or (graphql == json and graphql_rank == 2)


def _quality(parameters: str) -> float:
    for name, value in _PARAMETERS.findall(parameters):
        if name.lower() == "q":
            return float(value) if _QUALITY.fullmatch(value) else 0.0
    return 1.0
