"""Writes the software bill of materials: what a release is made of, as CycloneDX 1.6 JSON. `make sbom` runs it.

usage: sbom.py [--lock requirements.lock] [--output FILE]

The list comes from the lock file through cyclonedx-py; this adds what an installed environment knows (licences) and
takes out what is of the place where it was made: addresses of indexes, lines of files, times. So the same lock gives
the same bytes anywhere, and a difference between two releases is a difference in what they contain.
Runs in the scanners' environment; it reads licences from the one of `--packages`, if there is one.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
_TIMEOUT: Final = 120
_SPEC_VERSION: Final = "1.6"
_UNKNOWN: Final = "NOASSERTION"
_VERSION: Final = re.compile(r'__version__(?:: Final)?\s*=\s*"([^"]+)"')
_LONGEST_LICENSE: Final = 100
"""Some packages put the whole text where the name belongs."""


class NotMade(Exception):
    """The bill could not be made; the message says why."""


def bill(lock: Path, packages: Sequence[Path]) -> dict[str, Any]:
    """The bill of a lock file. Raises NotMade."""
    found = _cyclonedx(lock)
    licenses = dict(_licenses(packages))
    components = [_component(component, licenses) for component in found.get("components", ())]
    components.sort(key=lambda component: (component["name"], component["version"]))
    main = _main_component()
    return {
        "$schema": found["$schema"],
        "bomFormat": "CycloneDX",
        "specVersion": _SPEC_VERSION,
        "version": 1,
        "metadata": {"component": main},
        "components": components,
        "dependencies": [
            {"ref": main["bom-ref"], "dependsOn": sorted({component["bom-ref"] for component in components})},
            *({"ref": reference} for reference in sorted({component["bom-ref"] for component in components})),
        ],
    }


def _cyclonedx(lock: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", "-", "--output-reproducible"]
    command += ["--of", "JSON", "--sv", _SPEC_VERSION, "--no-validate"]
    try:
        done = subprocess.run(  # noqa: S603  # of constants
            command, input=lock.read_bytes(), capture_output=True, timeout=_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise NotMade(f"cyclonedx-py could not run: {problem}") from problem
    if done.returncode != 0:
        raise NotMade(f"cyclonedx-py ended with {done.returncode}: {done.stderr.decode(errors='replace')[-500:]}")
    made: dict[str, Any] = json.loads(done.stdout)
    return made


def _component(found: dict[str, Any], licenses: dict[str, str]) -> dict[str, Any]:
    name, version = found["name"], found.get("version")
    if version is None:
        raise NotMade(f"{name} is not pinned to a version")
    digests = sorted(
        {
            digest["content"]
            for reference in found.get("externalReferences", ())
            for digest in reference.get("hashes", ())
        }
    )
    if not digests:
        raise NotMade(f"{name} has no hash")
    return {
        "type": "library",
        "bom-ref": found["purl"],
        "name": name,
        "version": version,
        "purl": found["purl"],
        "licenses": [{"license": {"name": licenses.get(_normalised(name), _UNKNOWN)}}],
        # A release is several files (one for each platform). Each digest is of one of them, so they are no `hashes` of
        # the component, which would be of one file.
        "properties": [{"name": "kiseki:file-sha256", "value": digest} for digest in digests],
    }


def _main_component() -> dict[str, Any]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    match = _VERSION.search((ROOT / "src" / "kiseki" / "_version.py").read_text(encoding="utf-8"))
    if match is None:
        raise NotMade("src/kiseki/_version.py names no version")
    purl = f"pkg:pypi/{project['name']}@{match[1]}"
    return {
        "type": "framework",
        "bom-ref": purl,
        "name": project["name"],
        "version": match[1],
        "description": project["description"],
        "purl": purl,
        "licenses": [{"license": {"id": project["license"]}}],
    }


def _licenses(packages: Sequence[Path]) -> Iterator[tuple[str, str]]:
    for distribution in importlib.metadata.distributions(path=[str(path) for path in packages]):
        metadata: Any = distribution.metadata
        said = metadata.get("License-Expression") or _classified(metadata.get_all("Classifier") or ())
        said = said or " ".join((metadata.get("License") or "").split())
        if said and len(said) <= _LONGEST_LICENSE:
            yield _normalised(metadata["Name"]), said


def _classified(classifiers: Sequence[str]) -> str:
    names = [line.rsplit(" :: ", 1)[-1] for line in classifiers if line.startswith("License :: OSI Approved :: ")]
    return " OR ".join(sorted(names))


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _check(text: str) -> None:
    """Raises NotMade when the text does not fit CycloneDX's own schema."""
    # Of the scanners' environment; everything else here is also tested in the developers'.
    from cyclonedx.schema import SchemaVersion  # noqa: PLC0415
    from cyclonedx.validation.json import JsonStrictValidator  # noqa: PLC0415

    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if problem is not None:
        raise NotMade(f"the bill does not fit the schema of CycloneDX {_SPEC_VERSION}: {str(problem)[:500]}")


def main(arguments: Sequence[str]) -> int:
    """Writes the bill; 0, or 1 with one line on stderr when it can't be made."""
    parser = argparse.ArgumentParser(prog="sbom.py", description="Writes the software bill of materials.")
    parser.add_argument("--lock", type=Path, default=ROOT / "requirements.lock", help="what is pinned")
    parser.add_argument("--output", type=Path, help="file to write; standard output unless given")
    parser.add_argument(
        "--packages", type=Path, action="append", help="site-packages that know licences; those of .venv-dev, .venv"
    )
    options = parser.parse_args(arguments)
    packages = options.packages or [
        path for venv in (".venv-dev", ".venv") for path in sorted((ROOT / venv).glob("lib/python*/site-packages"))
    ]
    warnings.simplefilter("ignore")
    try:
        text = json.dumps(bill(options.lock, packages), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        _check(text)
        if options.output is None:
            sys.stdout.write(text)
        else:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(text, encoding="utf-8")
    except (NotMade, OSError, ValueError) as problem:
        print(f"sbom: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
