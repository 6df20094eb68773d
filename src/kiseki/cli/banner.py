"""`announce`: what a process says when it serves: addresses for people, or one line of JSON for programs."""

from __future__ import annotations

import json
import logging
import sys
from typing import Final

from kiseki._version import __version__
from kiseki.service.kinds import Listening
from kiseki.service.settings import Settings

__all__ = ["announce", "urls"]

_log = logging.getLogger(__name__)

_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104  # shown, not bound
_EXAMPLE: Final = (
    'mutation { createUserAccount(input: {firstName: "花子", lastName: "山田", '
    'emailAddress: "hanako.yamada@example.com"}) { id } }'
)


def announce(settings: Settings, listening: Listening, *, shipped: bool) -> None:
    """Says where the process listens. `shipped`: it runs the shipped application, so an example can be given."""
    found = urls(settings, listening)
    if settings.log_format == "json":
        _log.info("listening", extra={"urls": found, "data_dir": str(settings.data_dir.absolute())})
        return
    lines = [f"kiseki {__version__}, {settings.profile} profile, data in {settings.data_dir.absolute()}", ""]
    width = max(map(len, found))
    lines += [f"  {name.replace('_', ' '):<{width}}  {url}" for name, url in found.items()]
    if shipped and "command" in found and settings.development:
        lines += ["", "Try it:", "", *_example(found)]
    if listening.token is not None:
        lines += [
            "",
            "Requests from this machine need no token. One with every role, for an hour:",
            "",
            listening.token,
        ]
    lines += ["", "Ctrl-C ends it."]
    print("\n".join(lines))
    sys.stdout.flush()


def urls(settings: Settings, listening: Listening) -> dict[str, str]:
    """What can be opened, by name."""
    host = _EVERYWHERE.get(settings.host, f"[{settings.host}]" if ":" in settings.host else settings.host)
    scheme = "http" if settings.tls_certificate is None else "https"
    found = {}
    for api, port in listening.ports.items():
        found[api] = f"{scheme}://{host}:{port}/api/graphql"
    if settings.development:
        for api, port in listening.ports.items():
            found[f"{api}_playground"] = f"{scheme}://{host}:{port}/api/playground"
    found["ready"] = f"http://{host}:{listening.management}/ready"
    found["metrics"] = f"http://{host}:{listening.management}/metrics"
    return found


def _example(found: dict[str, str]) -> list[str]:
    def curl(url: str, document: str) -> str:
        body = json.dumps({"query": document}, ensure_ascii=False)
        return f"  curl -s {url} -H 'Content-Type: application/json' -d '{body}'"

    lines = [curl(found["command"], _EXAMPLE)]
    if "query" in found:
        lines.append(curl(found["query"], "{ getUserAccounts { id fullName createdAt } }"))
    return lines
