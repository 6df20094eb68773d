"""Unit: the names that `import kiseki` offers, which are imported when they are first used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import kiseki


def test_every_public_name_is_there() -> None:
    for name in kiseki.__all__:
        assert getattr(kiseki, name) is not None
        assert name in dir(kiseki)


def test_each_name_has_one_home() -> None:
    homes = [name for names in kiseki._HOMES.values() for name in names]
    assert sorted([*homes, "__version__"]) == sorted(kiseki.__all__)


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = kiseki.nothing


def test_the_command_line_says_its_version_without_a_database_toolkit() -> None:
    code = "import sys, kiseki.cli.main as m; m.run(['version']); sys.exit('sqlalchemy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"kiseki {kiseki.__version__}\n")
