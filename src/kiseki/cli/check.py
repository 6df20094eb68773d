"""`kiseki check --deploy`: what the production profile would refuse to start on, without starting anything."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from kiseki.service.checks import findings
from kiseki.service.settings_sources import load_settings

__all__ = ["check"]


def check(*, config: Path | None, data_dir: Path | None, deploy: bool, json: bool) -> int:
    """Prints each finding with its mend; 0 when there is none, else 1. `deploy` looks as the production profile does.

    Raises SettingsError.
    """
    options = {"data_dir": data_dir, "profile": "production" if deploy else None}
    settings = load_settings(options=options, environ=os.environ, directory=Path.cwd(), config=config)
    found = findings(settings, os.environ)
    if json:
        rows = [{"name": one.name, "problem": one.problem, "remedy": one.remedy} for one in found]
        print(msgspec.json.encode(rows).decode())
    else:
        for one in found:
            print(f"{one.name}: {one.problem}\n    {one.remedy}")
        print(f"{len(found)} findings for the {settings.profile} profile" if found else "nothing was found")
    return 1 if found else 0
