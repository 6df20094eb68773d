"""Runs what looks at infra/: it has an environment of its own (.venv-infra), so it is another process."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
TERRAFORM: Final = ROOT / "infra" / "terraform"
ENVIRONMENT: Final = ROOT / ".venv-infra"
PYTHON: Final = ENVIRONMENT / "bin" / "python"
SCHEMA: Final = ENVIRONMENT / "terraform" / "aws-6.66.0.json"
NOT_HERE: Final = "the environment that checks infra/ (.venv-infra) is not there"

_TIMEOUT: Final = 170


@dataclass(frozen=True, kw_only=True)
class Said:
    """The end of a command. `text` is all it said, on one line."""

    code: int
    output: str
    text: str


def tools(command: str, *arguments: str | Path) -> Said:
    """One command of `python -m tools.infra`."""
    return run([PYTHON, "-m", "tools.infra", command, *arguments])


def run(command: Sequence[str | Path]) -> Said:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "LOG_LEVEL": "ERROR"},
        capture_output=True,
        check=False,
        encoding="utf-8",
        timeout=_TIMEOUT,
    )
    return Said(code=done.returncode, output=done.stdout, text=" ".join(f"{done.stdout} {done.stderr}".split()))


def folders() -> list[Path]:
    """Every folder that Terraform could be run in."""
    return sorted({path.parent for path in TERRAFORM.rglob("*.tf") if ".terraform" not in path.parts})


def with_tests() -> list[Path]:
    """Every folder with tests of its own, and those that must have some."""
    composed = [TERRAFORM / "system", *(TERRAFORM / "environments").glob("*/")]
    # tests/refused/ is of tests that have to fail.
    having = {path.parent.parent for path in TERRAFORM.rglob("tests/*.tftest.hcl") if ".terraform" not in path.parts}
    return sorted(having | {folder for folder in composed if folder.is_dir()})


def name(folder: Path) -> str:
    return str(folder.relative_to(TERRAFORM))
