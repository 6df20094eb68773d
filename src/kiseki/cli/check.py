"""`kiseki check --deploy`: what the production profile would refuse to start on, without starting anything."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec

from kiseki.application.system import SystemClock
from kiseki.kernel.errors import KisekiError
from kiseki.service.checks import Finding, findings
from kiseki.service.kinds import Parts
from kiseki.service.masks import masking_of
from kiseki.service.secrets import secrets_of
from kiseki.service.settings import Settings
from kiseki.service.settings_sources import load_settings
from kiseki.service.transport import tls_findings

__all__ = ["check"]

_EVERYTHING = Parts(command=True, query=True, updater=True)


def check(*, config: Path | None, data_dir: Path | None, deploy: bool, json: bool, parts: Parts = _EVERYTHING) -> int:
    """Prints each finding with its mend; 0 when there is none, else 1. `deploy` looks as the production profile does.
    `parts` is what the process would run; the files of TLS are looked at too, where it serves an API.

    Raises SettingsError.
    """
    options = {"data_dir": data_dir, "profile": "production" if deploy else None}
    settings = load_settings(options=options, environ=os.environ, directory=Path.cwd(), config=config)
    found = findings(settings, os.environ, parts)
    if parts.apis:
        found += asyncio.run(_files(settings))
    if json:
        rows = [{"name": one.name, "problem": one.problem, "remedy": one.remedy} for one in found]
        print(msgspec.json.encode(rows).decode())
    else:
        for one in found:
            print(f"{one.name}: {one.problem}\n    {one.remedy}")
        print(f"{len(found)} findings for the {settings.profile} profile" if found else "nothing was found")
    return 1 if found else 0


async def _files(settings: Settings) -> list[Finding]:
    clock = SystemClock()
    try:
        secrets = secrets_of(settings, clock=clock, masker=masking_of(settings))
    except KisekiError as problem:
        return [Finding("secrets", str(problem), "the service does not start like this")]
    try:
        return [Finding(*one) for one in await tls_findings(settings, secrets=secrets, now=clock.now())]
    finally:
        await secrets.close()
