"""Unit: finding the application that --app names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kiseki import Application
from kiseki.cli.applications import ApplicationNotFound, load_application

Module = Callable[[str], str]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Module]:
    """Writes a module into the current folder; gives its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    names: list[str] = []

    def write(source: str) -> str:
        name = f"written_{tmp_path.name}_{len(names)}".replace("-", "_")
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        names.append(name)
        return name

    yield write
    for name in names:
        sys.modules.pop(name, None)


def refusal(reference: str) -> str:
    with pytest.raises(ApplicationNotFound) as refused:
        load_application(reference)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_without_a_reference_it_is_the_shipped_one() -> None:
    assert "createUserAccount" in load_application(None).commands


def test_the_current_folder_is_importable(module: Module) -> None:
    name = module("from kiseki.users import app as mine")
    assert isinstance(load_application(f"{name}:mine"), Application)


@pytest.mark.parametrize(
    "reference", ["", "shop", "shop:", ":app", "shop.main:app.x", "shop/main:app", "shop:app()", "..x:y"]
)
def test_other_forms_are_refused(reference: str) -> None:
    if reference:
        assert "package.module:attribute" in refusal(reference)


def test_a_module_that_is_not_there() -> None:
    assert "there is no module nowhere_to_be_found" in refusal("nowhere_to_be_found.main:app")


def test_a_module_that_needs_what_is_not_installed(module: Module) -> None:
    name = module("\nimport nowhere_to_be_found")
    text = refusal(f"{name}:app")
    assert f"{name} imports nowhere_to_be_found, which is not installed" in text
    assert f"{name}.py:2" in text


def test_a_module_that_is_not_python(module: Module) -> None:
    name = module("x = 1\nthis is no Python")
    assert f"{name}.py:2" in refusal(f"{name}:app")


def test_a_module_that_fails(module: Module) -> None:
    name = module("def f():\n    raise ValueError('a reason')\nf()")
    text = refusal(f"{name}:app")
    assert "ValueError: a reason" in text
    assert f"{name}.py:2" in text


def test_a_definition_that_can_not_work_says_where_it_is(module: Module) -> None:
    name = module("from kiseki import Application\n\n\napp = Application(contexts=[])")
    text = refusal(f"{name}:app")
    assert "an application has at least one context" in text
    assert f"{name}.py:4" in text


def test_an_attribute_that_is_not_there(module: Module) -> None:
    name = module("from kiseki.users import app as mine")
    assert "has no app; it has mine" in refusal(f"{name}:app")
    assert "has no Application at all" in refusal("json:app")


def test_an_attribute_that_is_something_else(module: Module) -> None:
    name = module("from kiseki.users import users as app")
    assert "is a Context; it must be a kiseki Application" in refusal(f"{name}:app")
