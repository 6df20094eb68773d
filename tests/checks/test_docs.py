"""What the documentation names exists: settings, commands and their options, make targets, links, files, audit kinds.

And its examples hold: the variables of a production start leave no finding, and the promise of an erasure stands there
word for word.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from kiseki.cli.main import app
from kiseki.operations.dr.ages import AGES
from kiseki.service.checks import findings
from kiseki.service.embedded_metrics import EMBEDDED
from kiseki.service.metrics import METRICS
from kiseki.service.settings import ENVIRONMENT_PREFIX, Settings
from kiseki.service.settings_sources import load_settings

ROOT = Path(__file__).parents[2]
SOURCE = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "src").rglob("*.py")))
TESTS = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "tests").rglob("*.py")) if path != Path(__file__))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
SETTINGS = {f"{ENVIRONMENT_PREFIX}{name.upper()}": name for name in Settings.model_fields}
OTHER_VARIABLES = {"KISEKI_APP"}
"""Of the Lambda function alone."""
PROMISE = "live stores at once; key and read-model backups within 7 days; events stay valid"
TERRAFORM_WORDS = {"allowed_account_ids", "prevent_destroy"} | {
    name
    for file in (ROOT / "infra" / "terraform" / "system" / "variables.tf",)
    for name in re.findall(r'^variable "(\w+)"', file.read_text("utf-8"), re.MULTILINE)
}
METRIC_NAMES = METRICS.keys() | EMBEDDED.keys() | AGES.keys()
# Words of RFCs, headers, libraries and SQL that look like a setting.
OTHER_WORDS = {
    "full_page_writes",
    "invalid_request",
    "invalid_token",
    "kiseki_journal",
    "kiseki_keys",
    "kiseki_read_models",
    "kiseki_tls_expires_seconds",
    "max_slot_wal_keep_size",
    "min_decryption_version",
    "pg_dump",
    "pg_receivewal",
    "synchronous_commit",
}
FOLDERS = ("docs", "src", "tests", "tools", "examples", "schema", "benchmarks", "requirements")

document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def spans(text: str) -> Iterator[str]:
    """Code between backticks, whole spans that may go over a line's end."""
    for paragraph in re.split(r"\n\s*\n", text):
        if not paragraph.startswith("    "):
            for found in re.findall(r"`([^`]+)`", paragraph):
                yield " ".join(found.split())


def blocks(text: str) -> Iterator[str]:
    """Indented code, each block as it stands without the indentation."""
    lines: list[str] = []
    for line in [*text.splitlines(), "end"]:
        if line.startswith("    ") or (lines and not line.strip()):
            lines.append(line[4:])
        elif lines:
            yield "\n".join(lines)
            lines = []


def called(text: str) -> Iterator[list[str]]:
    """The words of each call of `kiseki`, in spans and in code."""
    for span in spans(text):
        if span.startswith("kiseki "):
            yield span.split()[1:]
    for block in blocks(text):
        for line in block.splitlines():
            for call in re.findall(r"(?:^|[ ($/])kiseki ([a-z][^|;)\n]*)", re.sub(r"(^|\s)#.*", "", line)):
                yield call.split()


def problem_of_call(words: list[str]) -> str | None:
    """What is wrong with a call: a command or an option that is not there. Arguments are not looked at."""
    command: Any = typer.main.get_command(app)
    words = list(words)
    while hasattr(command, "commands"):
        if not words or not re.fullmatch(r"[a-z][a-z-]*", words[0]):
            return None if not words or words[0] in ("…", "--help") else f"no command: {words[0]}"
        name = words.pop(0)
        if name not in command.commands:
            return f"no command: {name}"
        command = command.commands[name]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    given = [word.strip("[],`").partition("=")[0] for word in words if word.strip("[").startswith("-")]
    unknown = [option for option in given if option not in known]
    return f"no option: {', '.join(unknown)}" if unknown else None


def slug(heading: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def exported(block: str) -> dict[str, str]:
    """The variables that a block of shell exports."""
    words = [shlex.split(line) for line in block.splitlines() if line.startswith("export ")]
    return dict(word[1].replace("$PWD", "/srv").split("=", 1) for word in words)


@document
def test_every_variable_is_a_setting(path: Path) -> None:
    for name in sorted(set(re.findall(r"\bKISEKI_[A-Z0-9_]*[A-Z0-9]", path.read_text("utf-8")))):
        if name in OTHER_VARIABLES:
            assert name in SOURCE, f"{path.name} names {name}, which nothing reads"
        elif name.startswith("KISEKI_TEST_"):
            assert name in TESTS, f"{path.name} names {name}, which no test reads"
        else:
            assert name in SETTINGS, f"{path.name} names {name}, which is no setting"


@document
def test_every_setting_in_backticks_exists(path: Path) -> None:
    unknown = [
        word
        for span in spans(path.read_text("utf-8"))
        for word in re.findall(r"^([a-z0-9]+(?:_[a-z0-9]+)+)(?: = .*)?$", span)
        if word not in Settings.model_fields and word not in OTHER_WORDS | METRIC_NAMES | TERRAFORM_WORDS
    ]
    assert not unknown, f"{path.name} has {unknown}, which are neither settings nor known words"


@document
def test_every_command_and_option_exists(path: Path) -> None:
    wrong = {
        " ".join(words): problem for words in called(path.read_text("utf-8")) if (problem := problem_of_call(words))
    }
    assert not wrong


@document
def test_every_make_target_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    text = path.read_text("utf-8")
    found = {span.split()[1] for span in spans(text) if re.fullmatch(r"make [a-z-]+( .*)?", span)}
    found |= {name for block in blocks(text) for name in re.findall(r"^make ([a-z-]+)", block, re.MULTILINE)}
    assert found <= targets


@document
def test_every_link_and_file_exists(path: Path) -> None:
    text = path.read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{path.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{path.name} links to {target}"
    for span in spans(text):
        if re.fullmatch(rf"(?:{'|'.join(FOLDERS)})[A-Za-z0-9_.-]*/?[A-Za-z0-9_./*-]*", span) and (
            "/" in span or "*" in span
        ):
            assert any(ROOT.glob(span.rstrip("/"))), f"{path.name} names {span}"


def test_every_extra_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for path in DOCUMENTS:
        for names in re.findall(r"kiseki\[([a-z,]+)\]", path.read_text("utf-8")):
            assert set(names.split(",")) <= set(extras), f"{path.name} names kiseki[{names}]"


def test_every_kind_of_security_event_exists() -> None:
    section = (ROOT / "docs" / "security.md").read_text("utf-8").split("\n## Audit\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.+?) \|", section, re.MULTILINE)
    kinds = [kind for row in rows for kind in re.findall(r"`([a-z_.]+)`", row)]
    assert len(kinds) > 15
    for kind in kinds:
        written = 'f"admin.{name}"' if kind.startswith("admin.") else f'"{kind}"'
        assert written in SOURCE, f"{kind} is recorded nowhere"
    recorded = set(re.findall(r'kind="([a-z_]+\.[a-z_]+)"', SOURCE))
    assert recorded <= set(kinds), "the table leaves kinds out"


def test_every_metric_exists() -> None:
    for path in DOCUMENTS:
        for name in re.findall(r"`(kiseki_[a-z_]+_(?:healthy|seconds|total|records))`", path.read_text("utf-8")):
            assert f'"{name}"' in SOURCE, f"{path.name} names {name}"


@pytest.mark.parametrize("name", ["security.md", "erasure.md"])
def test_the_promise_of_an_erasure_is_there_word_for_word(name: str) -> None:
    assert PROMISE in " ".join((ROOT / "docs" / name).read_text("utf-8").split())


def test_the_examples_of_a_production_leave_no_finding(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "security.md").read_text("utf-8")
    examples = [variables for block in blocks(text) if len(variables := exported(block)) > 5]
    assert len(examples) == 2
    for variables in examples:
        settings = load_settings(options={}, environ=variables, directory=tmp_path)
        assert not settings.development
        assert findings(settings, variables) == []
        for name in variables.keys() - {"KISEKI_HOST", "KISEKI_TOKEN_AUDIENCE", "KISEKI_DATA_DIR"}:
            assert needed(name, variables, tmp_path), f"{name} could be left out of the example"


def needed(name: str, variables: dict[str, str], directory: Path) -> bool:
    """Whether the example says something with a variable: without it there is a finding, or another store."""
    if SETTINGS[name] in {"journal", "read_model", "audit_sinks", "audit_database", "rate_store"}:
        return True
    fewer = {one: value for one, value in variables.items() if one != name}
    settings = load_settings(options={}, environ=fewer, directory=directory)
    return settings.development or findings(settings, fewer) != []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("`kiseki serve --workers N`", None),
        ("`kiseki journal show STREAM`", None),
        ("`kiseki serv`", "no command: serv"),
        ("`kiseki journal delete`", "no command: delete"),
        ("`kiseki audit tail --folow`", "no option: --folow"),
        ("text\n\n    KISEKI_JOURNAL=x kiseki journal imprt f\n", "no command: imprt"),
        ("text\n\n    $ .venv/bin/kiseki chek --deploy   # why\n", "no command: chek"),
        ("text\n\n    T=$(kiseki token isue --key k)\n", "no command: isue"),
    ],
)
def test_the_check_of_commands_can_fail(text: str, problem: str | None) -> None:
    assert [problem_of_call(words) for words in called(text)] == [problem]
