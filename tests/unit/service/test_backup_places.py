"""Which places of backups are too near to each other, or to what they are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kiseki.service.backup_places import mixed_places
from kiseki.service.settings import Settings


def problems(folder: Path, **given: Any) -> list[str]:
    settings = Settings(data_dir=folder / "data", **given)
    return [mixed.problem for mixed in mixed_places(settings)]


def test_places_that_are_apart(tmp_path: Path) -> None:
    assert problems(tmp_path) == []
    assert problems(tmp_path, backup="/backups/shop", backup_keys="/backups/shop-keys", erasure_ledger="/ledger") == []
    assert problems(tmp_path, backup="s3://b/shop?region=x", backup_keys="s3://b/shop-keys?region=x") == []
    assert problems(tmp_path, backup="s3://b/shop?region=x", backup_keys="/backups/keys") == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/backups", "/backups"),
        ("/backups", "/backups/keys"),
        ("/backups/all/journal", "file:///backups/all"),
        ("/backups/journal/../keys", "/backups/keys"),
        ("s3://b/shop?region=x", "s3://b/shop/keys?region=x"),
        ("s3://b?region=x", "s3://b/keys?region=x"),
        ("s3://b/shop?region=x", "s3://b/shop?region=y"),
    ],
)
def test_copies_of_keys_are_not_beside_those_of_the_journal(tmp_path: Path, one: str, other: str) -> None:
    (problem,) = problems(tmp_path, backup=one, backup_keys=other)
    assert "backup and backup_keys" in problem


def test_backups_are_not_on_the_disk_that_they_are_of(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, backup=str(tmp_path / "data" / "backups"))
    assert "data directory" in problem


def test_the_ledger_is_in_no_backup(tmp_path: Path) -> None:
    for ledger in ("/backups/ledger", "/backups", "file:/backups/ledger"):
        (problem,) = problems(tmp_path, backup="/backups", erasure_ledger=ledger)
        assert "erasure_ledger" in problem
    assert problems(tmp_path, backup="/backups", erasure_ledger="postgresql://a@b/c") == []
