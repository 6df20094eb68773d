"""Composing secrets and master keys loads no library that is not used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kiseki.security.secrets.opening import open_secrets, vault_client
from tests.unit.security.fakes import FakeClock

MODULES = (
    "kiseki.clients.postgres, kiseki.security.master_keys, kiseki.security.secrets.opening, "
    "kiseki.security.secrets.passwords, kiseki.security.secrets.findings, kiseki.cli.keys"
)


def test_optional_libraries_stay_out() -> None:
    code = (
        f"import {MODULES}\nimport sys\n"
        "print([each for each in ('aiohttp', 'aiobotocore', 'botocore', 'hvac') if each in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


async def test_making_a_source_asks_nobody_and_fails_for_nothing(tmp_path: Path) -> None:
    make = vault_client("https://vault.invalid", token_file=tmp_path / "none", role_id="", secret_id="", ca=None)
    source = open_secrets(clock=FakeClock(), vault=make)
    assert (await source.get("plain")).reveal() == "plain"
    await source.close()
    assert vault_client("", token_file=None, role_id="", secret_id="", ca=None) is None


@pytest.mark.parametrize("value", ["", "plain"])
async def test_a_plain_value_needs_no_reader(value: str) -> None:
    assert (await open_secrets(clock=FakeClock()).get(value)).reveal() == value
