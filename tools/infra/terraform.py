"""Runs Terraform on a folder: in a copy, with the provider's stand-in, without a network.

`init` sees a mirror with the one version of the provider that the schema is of, so it also checks the version
constraints; everything after it talks to the stand-in.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tools.infra.provider import serving
from tools.infra.schema import Schema
from tools.infra.setup import Installed

__all__ = ["ROOT", "Outcome", "Terraform", "formatted", "prepared"]

ROOT: Final = Path(__file__).parents[2] / "infra" / "terraform"

_CORE: Final = Path(__file__).with_name("core.py")
_TIMEOUT: Final = 300
_WORD: Final = re.compile(r"\b[a-z][a-z0-9_]*\b")
_NOT_OURS: Final = ("TF_", "AWS_")
# Values that somebody keeps beside the code must not decide what a check says.
_LEFT_OUT: Final = (".terraform", ".terraform.lock.hcl", "*.tfstate*", "terraform.tfvars", "*.auto.tfvars")
_LOCAL_STATE: Final = 'terraform {\n  backend "local" {}\n}\n'


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a command said; `code` is 0 if it was content."""

    code: int
    output: str
    errors: str


@dataclass(frozen=True, kw_only=True)
class Terraform:
    """A folder's copy, ready to run commands in."""

    folder: Path
    environment: Mapping[str, str]

    def run(self, command: str, *arguments: str) -> Outcome:
        return _run([f"-chdir={self.folder}", command, *arguments], self.environment)


@contextmanager
def prepared(
    folder: Path, installed: Installed, *, state: bool = False, answered: bool = False
) -> Iterator[Terraform | Outcome]:
    """A copy of the folder after `init`, or what `init` complained of. `state`: with a local state, for `plan`.
    `answered`: as if AWS had answered already."""
    if not any(folder.glob("*.tf")):
        yield Outcome(code=1, output="", errors=f"kiseki: {folder} is no folder with *.tf in it\n")
        return
    folder = folder.resolve()
    root = ROOT if folder.is_relative_to(ROOT) else folder
    with tempfile.TemporaryDirectory(prefix="kiseki-infra-") as made:
        place = Path(made)
        copy = place / "terraform"
        shutil.copytree(root, copy, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        inside = copy / folder.relative_to(root)
        if state:
            (inside / "backend_override.tf").write_text(_LOCAL_STATE, encoding="utf-8")
        before = Terraform(folder=inside, environment=_environment(place, installed))
        init = before.run("init", *([] if state else ["-backend=false"]), "-input=false", "-no-color")
        if init.code:
            yield init
            return
        schema = Schema.load(installed.schema, words=_words(copy))
        with serving(schema, place, answered=answered) as attached:
            yield replace(before, environment={**before.environment, "TF_REATTACH_PROVIDERS": attached})


def formatted(folders: Sequence[Path]) -> Outcome:
    """Whether `fmt` would change nothing; otherwise what it would change."""
    places = [str(folder.resolve()) for folder in folders]
    return _run(["fmt", "-check", "-diff", "-no-color", "-recursive", *places], {})


def _run(arguments: Sequence[str], environment: Mapping[str, str]) -> Outcome:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_OURS)}
    done = subprocess.run(  # noqa: S603 - our own interpreter and arguments
        [sys.executable, "-P", str(_CORE), *arguments],
        env={**inherited, "CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1", **environment},
        capture_output=True,
        check=False,
        encoding="utf-8",
        timeout=_TIMEOUT,
    )
    return Outcome(code=done.returncode, output=done.stdout, errors=done.stderr)


def _environment(place: Path, installed: Installed) -> dict[str, str]:
    configuration = place / "terraformrc"
    configuration.write_text(
        f'provider_installation {{\n  filesystem_mirror {{\n    path = "{installed.mirror}"\n  }}\n}}\n',
        encoding="utf-8",
    )
    return {"TF_CLI_CONFIG_FILE": str(configuration)}


def _words(copy: Path) -> set[str]:
    files = [path for path in copy.rglob("*") if path.name.endswith((".tf", ".tftest.hcl", ".tfmock.hcl"))]
    return {word for path in files for word in _WORD.findall(path.read_text(encoding="utf-8"))}
