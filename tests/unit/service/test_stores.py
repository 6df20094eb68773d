"""Unit: the data directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kiseki.service.sqlite_stores import DataDirectory, DataDirectoryUnusable


def test_it_is_made_for_its_owner_only(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path / "a" / "data")
    directory.prepare()
    directory.prepare()
    for made in (directory.path, directory.keys, directory.read_models):
        assert made.stat().st_mode & 0o777 == 0o700


def test_what_can_not_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DataDirectoryUnusable, match="can't be written; change its permissions or `data_dir`"):
        DataDirectory(tmp_path).prepare()


def test_a_file_in_its_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(DataDirectoryUnusable, match="can't be made"):
        DataDirectory(tmp_path / "data").prepare()


def test_looking_does_not_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataDirectoryUnusable, match="there is no journal"):
        DataDirectory(tmp_path / "data").require_journal()
    assert list(tmp_path.iterdir()) == []
