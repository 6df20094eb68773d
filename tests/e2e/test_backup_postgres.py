"""`kiseki backup` on PostgreSQL, by the command line, with real processes: dump, drop, restore; and in a bucket."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiobotocore.session import get_session

from tests.e2e.backed_up import BackedUp, backed_up
from tests.e2e.commands import complaint
from tests.servers.emulator import REGION
from tests.servers.postgres import PostgresServer


@pytest.fixture
def system(tmp_path: Path, postgres_server: PostgresServer) -> Iterator[BackedUp]:
    given = {"KISEKI_JOURNAL": postgres_server.create_database(), "KISEKI_POSTGRES_PROGRAMS": str(postgres_server.bin)}
    yield from backed_up(tmp_path / "system", **given)


async def test_dropped_schemas_come_back(system: BackedUp, postgres_server: PostgresServer) -> None:
    await system.start()
    kept, erased = await system.create("Hanako"), await system.create("Erased")
    assert system.kiseki("backup", "create").count("verified it") == 3
    await system.erase(erased)
    in_use = complaint(system.run("backup", "restore", "--part", "journal", "--discard-newer"))
    assert "stop kiseki" in in_use
    await system.rename(kept, "Still served")
    system.stop()
    url = system.environment["KISEKI_JOURNAL"]
    for schema in ("kiseki_journal", "kiseki_keys"):
        postgres_server.sql(f"DROP SCHEMA {schema} CASCADE", url)
    restored = system.kiseki("backup", "restore")
    assert "journal: restored from the backup" in restored
    assert "keys: restored from the backup" in restored
    assert "1 keys destroyed again" in restored
    system.token = ""
    await system.start()
    assert await system.names() == {kept: "Hanako Yamada"}
    await system.rename(kept, "Sato")
    assert await system.names() == {kept: "Hanako Sato"}
    assert "is sound" in system.kiseki("journal", "verify")


async def test_what_is_replaced_is_kept(system: BackedUp, postgres_server: PostgresServer) -> None:
    await system.start()
    await system.create()
    system.kiseki("backup", "create", "--part", "journal")
    await system.create("Newer")
    system.stop()
    refused = complaint(system.run("backup", "restore", "--part", "journal"))
    assert "1 commits that this backup lacks" in refused
    done = system.run("backup", "restore", "--part", "journal", "--discard-newer")
    assert done.returncode == 0, done.stderr
    (kept,) = [line for line in done.stdout.splitlines() if "is kept" in line]
    schema = kept.partition("schema ")[2].partition(" ")[0]
    assert schema in done.stderr  # how to remove it
    count = postgres_server.sql(f"SELECT count(*) FROM {schema}.commits", system.environment["KISEKI_JOURNAL"])
    assert count == "2"
    await system.start()
    system.token = ""
    assert len(await system.names()) == 1


async def test_backups_in_a_bucket(tmp_path: Path, aws_endpoint: str) -> None:
    """The same commands, with S3 as the place."""
    bucket = f"backups-{secrets.token_hex(6)}"
    async with get_session().create_client(
        "s3",
        region_name=REGION,
        endpoint_url=aws_endpoint,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    ) as client:
        await client.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    at = f"region={REGION}&endpoint={aws_endpoint}"
    given = {
        "KISEKI_BACKUP": f"s3://{bucket}/shop?{at}",
        "KISEKI_BACKUP_KEYS": f"s3://{bucket}/shop-keys?{at}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    for system in backed_up(tmp_path / "system", **given):
        await system.start()
        account = await system.create()
        assert system.kiseki("backup", "create").count("verified it") == 3
        system.kiseki("backup", "protect", "--once")
        second = await system.create("Second")
        system.kiseki("backup", "protect", "--once")
        system.lose_data()
        assert "continuous protection" in system.kiseki("backup", "restore")
        await system.start()
        system.token = ""
        assert set(await system.names()) == {account, second}
        missing = complaint(
            system.run("backup", "create", "--part", "journal", KISEKI_BACKUP=f"s3://no-such-{bucket}/shop?{at}")
        )
        assert "bucket" in missing
