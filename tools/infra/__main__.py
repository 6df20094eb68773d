"""Checks of infra/terraform, without AWS and without a network. Runs in .venv-infra.

usage: python -m tools.infra setup                         fetches the provider's schema; make does this
       python -m tools.infra fmt FOLDER...                 whether everything below is formatted
       python -m tools.infra validate FOLDER...            each folder against the provider's schema
       python -m tools.infra test FOLDER [ARGUMENT...]     its *.tftest.hcl; arguments are those of `terraform test`
       python -m tools.infra plan FOLDER [ARGUMENT...]     the plan of a new one, as JSON
       python -m tools.infra answered FOLDER [ARGUMENT...] the same, as if AWS had said all ARNs and names already
"""

from __future__ import annotations

import sys
from pathlib import Path

try:
    from tools.infra.setup import NotInstalled, installed, setup
    from tools.infra.terraform import Outcome, Terraform, formatted, prepared
except ModuleNotFoundError as lacks:
    sys.exit(
        f"kiseki: {lacks.name} is not here; `make .venv-infra/.ready`, then .venv-infra/bin/python -m tools.infra …"
    )


def main(arguments: list[str]) -> int:
    match arguments:
        case ["setup"]:
            return _setup()
        case ["fmt", _, *_]:
            return _said(formatted([Path(folder) for folder in arguments[1:]]))
        case ["validate", _, *_]:
            return max([_validate(Path(folder)) for folder in arguments[1:]])
        case ["test", folder, *rest]:
            return _test(Path(folder), rest)
        case ["plan", folder, *rest]:
            return _plan(Path(folder), rest)
        case ["answered", folder, *rest]:
            return _plan(Path(folder), rest, answered=True)
    print(__doc__, file=sys.stderr)
    return 2


def _setup() -> int:
    try:
        setup()
    except NotInstalled as problem:
        print(f"kiseki: {problem}", file=sys.stderr)
        return 1
    return 0


def _validate(folder: Path) -> int:
    with prepared(folder, installed()) as terraform:
        return _said(_after(terraform, "validate", "-no-color"))


def _test(folder: Path, arguments: list[str]) -> int:
    with prepared(folder, installed()) as terraform:
        return _said(_after(terraform, "test", "-no-color", *arguments))


def _plan(folder: Path, arguments: list[str], *, answered: bool = False) -> int:
    with prepared(folder, installed(), state=True, answered=answered) as terraform:
        planned = _after(terraform, "plan", "-no-color", "-input=false", "-lock=false", "-out=plan", *arguments)
        if planned.code or isinstance(terraform, Outcome):
            return _said(planned)
        return _said(terraform.run("show", "-json", "plan"))


def _after(terraform: Terraform | Outcome, command: str, *arguments: str) -> Outcome:
    return terraform if isinstance(terraform, Outcome) else terraform.run(command, *arguments)


def _said(outcome: Outcome) -> int:
    sys.stdout.write(outcome.output)
    sys.stdout.flush()
    sys.stderr.write(outcome.errors)
    return outcome.code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except NotInstalled as missing:
        sys.exit(f"kiseki: {missing}")
