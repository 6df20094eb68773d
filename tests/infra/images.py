"""Does what a Dockerfile says, without a container engine: in a folder that stands for the image's file system.

What a base image and an engine bring (Python, namespaces, a read-only root) is this machine's. Each path of the image
is one below the folder, and the processes run as the image's user, to whom nothing there belongs but what the
Dockerfile gives it, where the tests are allowed to (root).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.infra.support import PYTHON, ROOT

__all__ = ["DOCKER", "Image", "Instruction", "compose", "instructions"]

DOCKER: Final = ROOT / "infra" / "docker"
PLACES: Final = (
    "/build",
    "/opt",
    "/var/lib/kiseki",
    "/var/lib/emulator",
    "/etc/kiseki",
    "/run/kiseki",
    "/make_secrets.py",
)
"""Of the images and of compose.yaml, whatever of them a service has."""

_NOBODY: Final = 10_001


class Instruction(NamedTuple):
    """One of a Dockerfile, its lines joined."""

    name: str
    value: str

    @property
    def words(self) -> list[str]:
        return self.value.split()

    @property
    def exec_form(self) -> list[str]:
        """Raises ValueError where it would be run by a shell."""
        found = json.loads(self.value[self.value.index("[") :])
        assert isinstance(found, list)
        return found


def instructions(dockerfile: Path) -> list[Instruction]:
    """Those of all stages, in order."""
    lines = [line for line in dockerfile.read_text("utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = []
    for line in joined.splitlines():
        name, _, value = line.strip().partition(" ")
        if name:
            found.append(Instruction(name, value.strip()))
    return found


def compose() -> dict[str, Any]:
    """compose.yaml, anchors and merges resolved."""
    code = "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.stdin)))"
    text = (DOCKER / "compose.yaml").read_text("utf-8")
    done = subprocess.run([PYTHON, "-c", code], input=text, capture_output=True, check=True, encoding="utf-8")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def context() -> set[str]:
    """What of the repository a build may copy, by .dockerignore: everything is left out but what is named."""
    rules = (ROOT / ".dockerignore").read_text("utf-8").split()
    assert rules[0] == "*"
    return {rule[1:] for rule in rules if rule.startswith("!")}


def _python() -> tuple[str, bool]:
    """A Python of 3.11 or newer, and whether another user may run it: that of a developer may be in their home."""
    mine = str(getattr(sys, "_base_executable", sys.executable))
    if os.geteuid() != 0:
        return mine, False
    for candidate in (mine, *(f"/usr/bin/python3.{minor}" for minor in range(20, 10, -1))):
        try:
            done = subprocess.run([candidate, "-m", "venv", "--help"], capture_output=True, check=False, user=_NOBODY)
        except OSError:
            continue
        if done.returncode == 0:
            return candidate, True
    return mine, False


class Image:
    """What a Dockerfile made, in a folder that everybody may enter."""

    def __init__(self, dockerfile: Path, folder: Path) -> None:
        """Does every instruction of every stage; the settings of the last stage stay."""
        self.folder = folder
        self.instructions = instructions(dockerfile)
        self.entrypoint: list[str] = []
        self.healthcheck: list[str] = []
        self.user = ""
        self._base = folder / "base"
        self._base.mkdir()
        python, self._as_user = _python()
        (self._base / "python").symlink_to(python)
        self._begin()
        for one in self.instructions:
            self._do(one)

    def at(self, text: str) -> str:
        """The same text with each path of the image below the folder."""
        for place in PLACES:
            text = re.sub(rf"(?<![\w.]){re.escape(place)}(?![\w.-])", f"{self.folder}{place}", text)
        return text

    def process(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Starts what the engine would: with the image's environment, user and folder, and these variables."""
        with log.open("ab") as output:
            return subprocess.Popen(stdout=output, stderr=output, **self._started(command, environment))

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """The same, to its end."""
        return subprocess.run(
            capture_output=True, text=True, check=False, timeout=100, **self._started(command, environment)
        )

    def _started(self, command: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
        variables = {name: self.at(value) for name, value in {**self.environment, **environment}.items()}
        program, *arguments = [self.at(word) for word in command]
        found = shutil.which(program, path=variables["PATH"])
        assert found is not None, f"{program} is not in {variables['PATH']}"
        user, _, group = self.user.partition(":")
        account = {"user": int(user), "group": int(group), "extra_groups": []} if self._as_user else {}
        return {
            "args": [found, *arguments],
            "env": variables,
            "cwd": self._workdir,
            "stdin": subprocess.DEVNULL,
            "start_new_session": True,
            **account,
        }

    def _begin(self) -> None:
        self.environment = {"PATH": f"{self._base}:/usr/local/bin:/usr/bin:/bin"}
        self._workdir = self.folder

    def _do(self, one: Instruction) -> None:
        match one.name:
            case "FROM":
                self._begin()
            case "ENV":
                for pair in one.words:
                    name, _, value = pair.partition("=")
                    self.environment[name] = self.at(value.replace("${PATH}", self.environment["PATH"]))
            case "WORKDIR":
                self._workdir = self._below(one.value)
                self._workdir.mkdir(parents=True, exist_ok=True)
            case "COPY":
                self._copy(one.words)
            case "RUN":
                self._run(one.value)
            case "USER":
                self.user = one.value
            case "HEALTHCHECK":
                self.healthcheck = one.exec_form
            case "ENTRYPOINT":
                self.entrypoint = one.exec_form
            case "ARG" | "LABEL" | "ADD" | "VOLUME" | "EXPOSE" | "STOPSIGNAL":
                pass
            case other:
                raise AssertionError(f"it is not known here what {other} does")

    def _below(self, place: str) -> Path:
        return self.folder / place.lstrip("/")

    def _copy(self, words: Sequence[str]) -> None:
        *sources, target = words
        place = self._below(target) if target.startswith("/") else self._workdir / target
        if sources[0].startswith("--from="):
            assert place.exists()  # all stages have one folder
            return
        for source in sources:
            assert source in context(), f".dockerignore leaves {source} out"
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, place / source)

    def _run(self, command: str) -> None:
        command = self.at(command)
        if os.geteuid() != 0:
            command = re.sub(r"--(owner|group)=\d+ ?", "", command)
        # Where packages come from, and whose certificates are believed there, is this machine's matter.
        machine = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))}
        done = subprocess.run(
            ["sh", "-ec", command],
            cwd=self._workdir,
            env={**machine, **self.environment, "HOME": os.environ.get("HOME", "/")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2_000:]}\n{done.stderr[-2_000:]}"
