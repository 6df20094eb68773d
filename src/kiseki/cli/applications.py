"""`load_application`: the application that `--app` names. Used by every command that needs one."""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Final

from kiseki.application.context import Application
from kiseki.kernel.errors import KisekiError

__all__ = ["ApplicationNotFound", "load_application"]

SHIPPED: Final = "kiseki.users:app"
_REFERENCE: Final = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")


class ApplicationNotFound(KisekiError):
    """What `--app` names can't be imported, or is no application. The message says where it fails."""

    code = "APPLICATION_NOT_FOUND"


def load_application(reference: str | None) -> Application:
    """The application of a reference `package.module:attribute`, importable from the current folder too.

    None is the shipped application. Raises ApplicationNotFound, DefinitionError.
    """
    text = reference or SHIPPED
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise ApplicationNotFound(f"--app {text!r} must be package.module:attribute, such as shop.main:app")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    module = _import(match[1])
    found = getattr(module, match[2], None)
    if isinstance(found, Application):
        return found
    if found is None:
        others = sorted(name for name, value in vars(module).items() if isinstance(value, Application))
        hint = f"; it has {', '.join(others)}" if others else "; it has no Application at all"
        raise ApplicationNotFound(f"--app {text}: module {match[1]} has no {match[2]}{hint}")
    raise ApplicationNotFound(
        f"--app {text} is a {type(found).__name__}; it must be a kiseki Application, such as Application(contexts=[…])"
    )


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as problem:
        missing = problem.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise ApplicationNotFound(
                f"--app: there is no module {missing} here ({os.getcwd()}) or among what is installed; check the name, "
                "or run kiseki in the folder that holds it"
            ) from problem
        raise ApplicationNotFound(
            f"--app: {name} imports {missing}, which is not installed ({_place(problem)}); install it"
        ) from problem
    except SyntaxError as problem:
        raise ApplicationNotFound(
            f"--app: {name} is not valid Python: {problem.msg} ({problem.filename}:{problem.lineno})"
        ) from problem
    except KisekiError as problem:
        # What is wrong with a definition says so itself; where it stands is what is missing.
        raise ApplicationNotFound(f"{problem} ({_place(problem)})") from problem
    except Exception as problem:
        raise ApplicationNotFound(
            f"--app: {name} can't be imported: {type(problem).__name__}: {problem} ({_place(problem)})"
        ) from problem


def _place(problem: BaseException) -> str:
    """File and line of the innermost frame of a user's file: outside kiseki, the import system and libraries."""
    ours = str(Path(__file__).parents[1])
    frames = [
        frame
        for frame in traceback.extract_tb(problem.__traceback__)
        if not frame.filename.startswith((ours, "<frozen")) and "importlib" not in frame.filename
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "inside kiseki"
