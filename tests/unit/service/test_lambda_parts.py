"""What the Lambda handler makes of its environment, before it opens anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from kiseki.service.lambda_handler import handler
from kiseki.service.lambda_parts import prepare
from kiseki.service.settings import SettingsError

MASTER_KEY = str(Path(__file__))
"""Any file will do: it is not opened here."""
SHOP = {
    "KISEKI_MASTER_KEY": MASTER_KEY,
    "KISEKI_JOURNAL": "dynamodb://shop?region=eu-west-1",
    "KISEKI_READ_MODEL": "postgresql://app@db/shop",
    "KISEKI_ERASURE_LEDGER": "dynamodb://ledger?region=eu-west-1",
}


def test_the_table_comes_from_the_journal_and_the_application_from_its_variable(tmp_path: Path) -> None:
    parts = prepare({**SHOP, "KISEKI_APP": "kiseki.users:app", "PATH": "/bin", "AWS_REGION": "eu-west-1"}, tmp_path)
    assert (parts.source.table, parts.source.region) == ("shop-journal", "eu-west-1")


@pytest.mark.parametrize("where", ["", "/mnt/ledger", "file:/mnt/ledger"])
def test_a_ledger_that_ends_with_the_function_is_refused(where: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="KISEKI_ERASURE_LEDGER has to name a database"):
        prepare({**SHOP, "KISEKI_ERASURE_LEDGER": where}, tmp_path)


def test_without_an_application_it_is_the_shipped_one(tmp_path: Path) -> None:
    prepare(SHOP, tmp_path)
    prepare({**SHOP, "KISEKI_APP": ""}, tmp_path)


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("nowhere.at.all:app", "nowhere"),
        ("kiseki.users:nothing", "nothing"),
        ("kiseki.users:users", "must be a kiseki Application"),
        ("!", "package.module:attribute"),
    ],
)
def test_an_application_that_is_none_is_refused(tmp_path: Path, reference: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as refused:
        prepare({**SHOP, "KISEKI_APP": reference}, tmp_path)
    assert "KISEKI_APP" in str(refused.value)


def test_other_settings_are_checked_as_everywhere(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="KISEKI_JURNAL"):
        prepare({**SHOP, "KISEKI_JURNAL": "x"}, tmp_path)


def test_a_journal_that_has_no_stream_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="KISEKI_JOURNAL to dynamodb://"):
        prepare({}, tmp_path)


@pytest.mark.parametrize("file", [None, "/nowhere/master.key", "/"])
def test_a_function_does_not_make_a_master_key_of_its_own(tmp_path: Path, file: str | None) -> None:
    environ = {name: value for name, value in SHOP.items() if name != "KISEKI_MASTER_KEY"}
    with pytest.raises(SettingsError, match="KISEKI_MASTER_KEY has to name a file"):
        prepare(environ if file is None else {**environ, "KISEKI_MASTER_KEY": file}, tmp_path)


def test_settings_may_stand_in_a_file_of_the_package(tmp_path: Path) -> None:
    lines = [f'{name.removeprefix("KISEKI_").lower()} = "{value}"' for name, value in SHOP.items()]
    (tmp_path / "kiseki.toml").write_text("\n".join(lines))
    assert prepare({}, tmp_path).source.table == "shop-journal"


def test_importing_the_entry_point_opens_nothing() -> None:
    assert callable(handler)
    assert vars(handler)["_runner"] is None
    assert vars(handler)["_parts"] is None
