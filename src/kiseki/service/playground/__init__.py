"""The GraphQL playground of the development profile, served from the files of this package.

The HTTP assembly answers `GET /api/playground` and `GET /api/graphql` with `Playground.page`, and
`GET /api/playground/{name}` with `Playground.asset` (None is 404). The browser is asked to load
nothing from anywhere else, so the page works without a network. `vendor/VENDORED.md` says where
the vendored files come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

__all__ = ["CONTENT_SECURITY_POLICY", "Api", "Asset", "Playground"]

Api: TypeAlias = Literal["command", "query"]

# GraphiQL's dialogs lock scrolling with one constant <style> element (react-remove-scroll-bar); its
# hash admits that element and no other. Everything else GraphiQL styles through the DOM.
_SCROLL_LOCK_STYLE: Final = "'sha256-nzTgYzXYDNe6BAHiiI7NNlfK8n/auuOAhh2t92YvuXo='"

CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        f"style-src 'self' {_SCROLL_LOCK_STYLE}",
        "connect-src 'self'",
        "img-src data:",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    )
)

_HTML: Final = "text/html; charset=utf-8"
_SCRIPT: Final = "text/javascript; charset=utf-8"
_STYLE: Final = "text/css; charset=utf-8"

# The only names ever looked up: a name from a request selects an entry, it never becomes a path.
_ASSETS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "playground.js": ("playground.js", _SCRIPT),
        "playground.css": ("playground.css", _STYLE),
        "graphiql.min.js": ("vendor/graphiql.min.js", _SCRIPT),
        "graphiql.css": ("vendor/graphiql.css", _STYLE),
        "react.production.min.js": ("vendor/react.production.min.js", _SCRIPT),
        "react-dom.production.min.js": ("vendor/react-dom.production.min.js", _SCRIPT),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """One response of the playground: 200 with this body and these two header values."""

    body: bytes
    content_type: str
    content_security_policy: str = CONTENT_SECURITY_POLICY


class Playground:
    """The pages and files of the playground, each read from the package at its first use.

    Safe to share between threads: two first uses at once read the same file twice, nothing more.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Asset] = {}

    def page(self, api: Api) -> Asset:
        """The HTML page for one API; `api` decides the title and the document in the editor."""
        key = f"page:{api}"
        page = self._loaded.get(key)
        if page is None:
            template = _read("index.html").decode()
            page = Asset(body=template.replace("{{api}}", api).encode(), content_type=_HTML)
            self._loaded[key] = page
        return page

    def asset(self, name: str) -> Asset | None:
        """The file served at `/api/playground/{name}`, or None when there is none of that name."""
        entry = _ASSETS.get(name)
        if entry is None:
            return None
        path, content_type = entry
        asset = self._loaded.get(name)
        if asset is None:
            asset = Asset(body=_read(path), content_type=content_type)
            self._loaded[name] = asset
        return asset


def _read(path: str) -> bytes:
    return files(__name__).joinpath(path).read_bytes()
