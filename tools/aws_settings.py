"""Writes the settings file of each process of an environment from what its infrastructure says.

usage: terraform -chdir=infra/terraform/environments/production output -json | python tools/aws_settings.py FOLDER

FOLDER gets a file for each process, such as command-api.toml, for `kiseki --config`: the same settings as its tasks
have in their environment. There are references to secrets in them, and no secret.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

__all__ = ["NoOutputs", "main", "settings_files"]

_PREFIX: Final = "KISEKI_"
_NO_SETTING: Final = "KISEKI_APP"
"""Tells the function which application it runs; everybody else is told by --app."""
_PLAIN: Final = re.compile(r"[^\x00-\x1f\x7f]*")


class NoOutputs(ValueError):
    """What was given is not what the infrastructure says."""


def settings_files(outputs: Mapping[str, Any]) -> Mapping[str, str]:
    """The text of each file by process. Raises NoOutputs for what `terraform output -json` would not say."""
    try:
        system = outputs["system"]["value"]
        name, settings = system["name"], system["settings"]
        return {process: _file(name, process, settings[process]) for process in sorted(settings)}
    except (KeyError, TypeError, AttributeError) as problem:
        raise NoOutputs(
            "there is no output `system` with settings; apply the environment first, then give this "
            "`terraform output -json`"
        ) from problem


def _file(name: str, process: str, environment: Mapping[str, str]) -> str:
    lines = [
        f"# {process} of {name}, written by tools/aws_settings.py from what the infrastructure says: change it there."
    ]
    for variable in sorted(environment):
        if variable.startswith(_PREFIX) and variable != _NO_SETTING:
            value = environment[variable]
            if not _PLAIN.fullmatch(value):
                raise NoOutputs(f"{variable} of {process} has characters that are no text")
            # Without control characters, a string of JSON is one of TOML.
            lines.append(f"{variable.removeprefix(_PREFIX).lower()} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    try:
        files = settings_files(json.load(sys.stdin))
        folder.mkdir(parents=True, exist_ok=True)
        for process, text in files.items():
            path = folder / f"{process}.toml"
            path.write_text(text, encoding="utf-8")
            print(f"written: {path}")
    except (json.JSONDecodeError, UnicodeDecodeError):
        print("kiseki: standard input is no JSON; give it `terraform output -json`", file=sys.stderr)
        return 1
    except (NoOutputs, OSError) as problem:
        print(f"kiseki: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
