"""A function's package as `pip install --target` and `zip` would make it, from what is installed here."""

from __future__ import annotations

import io
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["function_package"]

ROOT: Final = Path(__file__).parents[3]
_EXTRAS: Final = ("aws", "postgres")
_NOT_IN_A_FUNCTION: Final = frozenset({"uvicorn", "uvloop", "httptools", "typer", "rich", "awslambdaric"})
"""Servers and the command line; the runtime client is part of Lambda's Python."""
_SKIPPED: Final = ("__pycache__", "/tests/", "botocore/data/", "..")
"""Of botocore's descriptions of services a function needs none: it signs its requests itself."""
_KEPT: Final = ("botocore/data/endpoints.json", "botocore/data/partitions.json", "botocore/data/sdk-default")


def function_package() -> bytes:
    """A zip of kiseki and what it needs on AWS."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as package:
        for file in sorted((ROOT / "src" / "kiseki").rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                package.write(file, file.relative_to(ROOT / "src"))
        for one in _distributions():
            for path in one.files or ():
                name = path.as_posix()
                if any(part in name for part in _SKIPPED) and not name.startswith(_KEPT):
                    continue
                package.write(Path(str(one.locate_file(path))), name)
    return buffer.getvalue()


def _distributions() -> Iterator[Distribution]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    waiting = [Requirement(text) for text in project["dependencies"]]
    for extra in _EXTRAS:
        waiting += [Requirement(text) for text in project["optional-dependencies"][extra]]
    seen: set[str] = set(_NOT_IN_A_FUNCTION)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        extras = ("", *requirement.extras)
        one = distribution(requirement.name) if name not in _NOT_IN_A_FUNCTION else None
        if one is None:
            continue
        for text in one.requires or ():
            needed = Requirement(text)
            wanted = needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras)
            if wanted and canonicalize_name(needed.name) not in seen:
                waiting.append(needed)
        if name not in seen:
            seen.add(name)
            yield one
