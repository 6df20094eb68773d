"""Backups of a PostgreSQL key store: what was erased stays erased, whatever is restored."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kiseki.clients.postgres import PostgresAddress
from kiseki.operations.backup.manifest import Made, Manifest, Part
from kiseki.operations.backup.port import nothing
from kiseki.operations.errors import BackupDamaged, BackupRefused, RestoreRefused
from kiseki.operations.postgres.keys import PostgresKeyBackups
from kiseki.operations.postgres.scratch import Scratch
from kiseki.security.identity.postgres_revocations import PostgresRevocations
from kiseki.security.key_store import SubjectKeys
from kiseki.security.postgres_key_store import PostgresKeyStore
from tests.integration.journal.postgres_parts import connected
from tests.integration.operations.postgres.postgres_backup_parts import (
    CLOCK,
    journal_at,
    manifest_of,
    programs_of,
)
from tests.integration.security.key_parts import GONE, NOW, key
from tests.servers.postgres import PostgresServer

SCHEMA = "kiseki_keys"


@pytest.fixture
async def address(postgres_server: PostgresServer) -> PostgresAddress:
    address = PostgresAddress.parse(postgres_server.create_database(), schema=SCHEMA)
    await PostgresKeyStore.migrate(address)
    await PostgresRevocations.migrate(address)
    return address


@pytest.fixture
def driver(postgres_server: PostgresServer, address: PostgresAddress) -> PostgresKeyBackups:
    beside = Scratch(PostgresAddress.parse(postgres_server.url(), schema="public"))
    return PostgresKeyBackups(address, programs_of(postgres_server), clock=CLOCK, scratch=beside)


async def kept(address: PostgresAddress, *, inserted: str = "", erased: str = "") -> None:
    store = await PostgresKeyStore.open(address)
    if inserted:
        await store.insert({subject: key(f"k{subject}") for subject in inserted.split()})
    for subject in erased.split():
        await store.erase(subject, NOW)
    await store.close()


def of_keys(made: Made) -> Manifest:
    return manifest_of(made, Part.KEYS)


async def test_what_is_in_it(driver: PostgresKeyBackups, address: PostgresAddress, tmp_path: Path) -> None:
    await kept(address, inserted="A-1 A-2 A-3", erased="A-3 A-4")
    revocations = await PostgresRevocations.open(address)
    await revocations.revoke("issuer", "someone", at=2e9, forget_before=0.0)
    await revocations.close()
    made = await driver.make(tmp_path, nothing)
    assert made.counts == {"keys": 2, "erasures": 2, "revocations": 1}
    await kept(address, inserted="A-5", erased="A-1")
    assert (await driver.make(tmp_path, nothing)).digest != made.digest
    made = await driver.make(tmp_path, nothing)
    async with driver.opened(tmp_path, of_keys(made)) as store:
        assert await store.load(["A-1", "A-2", "A-5"]) == {
            "A-1": GONE,
            "A-2": SubjectKeys((key("kA-2"),)),
            "A-5": SubjectKeys((key("kA-5"),)),
        }


async def test_a_restore_brings_nobody_back(
    driver: PostgresKeyBackups, address: PostgresAddress, tmp_path: Path
) -> None:
    await kept(address, inserted="A-1 A-2 A-3", erased="A-3")
    made = await driver.make(tmp_path, nothing)
    await kept(address, inserted="A-5", erased="A-1 A-6")
    store = await PostgresKeyStore.open(address)
    mark = (await store.erasures(None)).mark
    await store.close()
    revocations = await PostgresRevocations.open(address)
    await revocations.revoke("issuer", "someone", at=2e9, forget_before=0.0)
    await revocations.close()
    staged = await driver.stage(tmp_path, of_keys(made), nothing)
    async with staged.opened() as beside:
        assert await beside.load(["A-1"]) == {"A-1": SubjectKeys((key("kA-1"),))}
    done = await staged.switch()
    assert any("within seven days" in line for line in done.left)
    store = await PostgresKeyStore.open(address)
    assert await store.load(["A-1", "A-2", "A-3", "A-5", "A-6"]) == {
        "A-1": GONE,
        "A-2": SubjectKeys((key("kA-2"),)),
        "A-3": GONE,
        "A-6": GONE,
    }
    assert (await store.erasures(mark)).subjects == ("A-1", "A-6")
    assert sorted((await store.erasures(0)).subjects) == ["A-1", "A-3", "A-6"]
    mark = (await store.erasures(None)).mark
    await store.erase("A-2", NOW)
    assert (await store.erasures(mark)).subjects == ("A-2",)
    await store.close()
    revocations = await PostgresRevocations.open(address)
    assert await revocations.load(0.0) == {("issuer", "someone"): 2e9}
    await revocations.close()
    replaced = re.search(r"kiseki_keys_replaced_\w+", done.kept)
    assert replaced is not None


@pytest.mark.parametrize("how", ["schema", "table"])
async def test_restore_of_a_store_that_is_lost(
    driver: PostgresKeyBackups, address: PostgresAddress, tmp_path: Path, how: str
) -> None:
    await kept(address, inserted="A-1", erased="A-2")
    made = await driver.make(tmp_path, nothing)
    async with connected(address) as connection:
        await connection.execute(f"DROP {'SCHEMA kiseki_keys' if how == 'schema' else 'TABLE subjects'} CASCADE")
    done = await (await driver.stage(tmp_path, of_keys(made), nothing)).switch()
    assert any("ledger" in line for line in done.left) == (how == "table")
    store = await PostgresKeyStore.open(address)
    assert await store.load(["A-1", "A-2"]) == {"A-1": SubjectKeys((key("kA-1"),)), "A-2": GONE}
    await store.close()


async def test_what_is_refused(
    driver: PostgresKeyBackups, postgres_server: PostgresServer, address: PostgresAddress, tmp_path: Path
) -> None:
    await kept(address, inserted="A-1")
    made = await driver.make(tmp_path, nothing)
    store = await PostgresKeyStore.open(address)
    staged = await driver.stage(tmp_path, of_keys(made), nothing)
    await store.load(["A-1"])
    with pytest.raises(RestoreRefused, match="kiseki-keys"):
        await staged.switch()
    await store.close()
    await staged.discard()
    manifest = of_keys(made)
    other = type(made)(store="x", method="x", as_of=made.as_of, versions=made.versions, counts=made.counts, digest="0")
    with pytest.raises(BackupDamaged, match="does not hold the keys"):
        await driver.stage(tmp_path, of_keys(other), nothing)
    with pytest.raises(BackupDamaged, match="does not hold the keys"):
        async with driver.opened(tmp_path, of_keys(other)):
            pass
    async with driver.opened(tmp_path, manifest):
        pass
    journal = await journal_at(postgres_server.create_database())
    wrong = PostgresKeyBackups(journal, programs_of(postgres_server), clock=CLOCK)
    with pytest.raises(BackupRefused, match="also holds the journal"):
        await wrong.make(tmp_path, nothing)
