"""An erased person is found nowhere: a byte search through every file of a service, and again after an older backup is
put back. With real processes, and a search that is seen to find the person where they legitimately were."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.client import Client, ConnectionLost
from tests.e2e.commands import kiseki_in
from tests.e2e.person_search import PersonSearch, forms
from tests.e2e.processes import Service
from tests.servers.postgres import NoPostgres, PostgresServer

FIRST, MAIDEN, MARRIED = "Žofiaquetzálie", "Þorgrímsdóttirová", "Ærøskøbing-Ñandúová"
EMAIL = "quetzalie.wyrmwood@unmistakable-mailbox.example"
PERSON = PersonSearch(FIRST, MAIDEN, MARRIED, EMAIL)
OTHER = {"firstName": "Someone", "lastName": "Else", "emailAddress": "someone@example.com"}
CREATE = "mutation ($i: CreateUserAccountInput!) { createUserAccount(input: $i) { id } }"
RENAME = "mutation ($i: RenameUserAccountInput!) { renameUserAccount(input: $i) { id } }"
ERASE = "mutation ($i: EraseUserAccountInput!) { eraseUserAccount(input: $i) { id } }"
GET = "query ($id: String!) { getUserAccount(userAccountId: $id) { firstName lastName } }"
SEARCH = "query ($t: String!) { searchUserAccounts(searchTerm: $t) { id } }"
TABLES = "SELECT schemaname || '.' || relname FROM pg_stat_user_tables WHERE schemaname LIKE 'kiseki_read_models%'"
VACUUMED = "SELECT coalesce(sum(vacuum_count), 0) FROM pg_stat_user_tables WHERE relname = 'accounts'"
TOKEN = "kiseki-consistency-token"


class World:
    """A service with a ledger elsewhere, and what a client does to it."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.ledger = folder / "elsewhere" / "erasures"
        settings = {
            "KISEKI_ERASURE_LEDGER": str(self.ledger),
            "KISEKI_SNAPSHOT_EVERY": "1",
            "KISEKI_LOG_LEVEL": "debug",
            **environment,
        }
        self.service = Service(folder / "data", "--drain-delay", "0", environment=settings)
        self.environment = settings
        self.token = ""

    async def start(self) -> None:
        self.service.start()
        await self.service.ready()

    def stop(self) -> None:
        assert self.service.terminate() == 0

    async def send(self, document: str, given: dict[str, Any], key: str | None = None) -> str:
        async with Client(self.service.command_port) as client:
            headers = {} if key is None else {"idempotency-key": key}
            reply = await client.graphql(document, {"i": given}, **headers)
        assert reply.status == 200, reply.body
        answer = reply.json()
        assert "errors" not in answer, answer
        self.token = reply.headers[TOKEN]
        return str(next(iter(answer["data"].values()))["id"])

    async def ask(self, document: str, **variables: str) -> Any:
        async with Client(self.service.query_port) as client:
            reply = await client.graphql(document, variables, **({TOKEN: self.token} if self.token else {}))
        assert reply.status == 200, reply.body
        answer = reply.json()
        assert "errors" not in answer, answer
        return next(iter(answer["data"].values()))

    def kiseki(self, *arguments: str) -> str:
        done = kiseki_in(self.environment, *arguments, "--data-dir", str(self.service.data_dir))
        assert done.returncode == 0, done.stderr
        return done.stdout

    async def live(self) -> str:
        """A person, in every place that a person gets to; their account's id."""
        person = {"firstName": FIRST, "lastName": MAIDEN, "emailAddress": EMAIL}
        account = await self.send(CREATE, person, key="the-first-request")
        await self.send(CREATE, OTHER)
        await self.send(RENAME, {"userAccountId": account, "firstName": FIRST, "lastName": MARRIED}, key="the-second")
        assert await self.ask(GET, id=account) == {"firstName": FIRST, "lastName": MARRIED}
        assert await self.ask(SEARCH, t=MARRIED[3:]) == [{"id": account}]
        return account

    @property
    def places(self) -> list[Path]:
        """Every file that a process of the service may have written."""
        return [self.folder]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "w")
    made.folder.mkdir()
    yield made
    if made.service.process is not None:
        made.service.kill()


async def nowhere(person: PersonSearch, places: Iterable[Path], *, seconds: float = 20.0) -> None:
    """Waits until nothing is found: a log of SQLite is cut when its last reader lets go."""
    found = person.in_files(*places)
    try:
        async with asyncio.timeout(seconds):
            while found:
                await asyncio.sleep(0.1)
                found = person.in_files(*places)
    except TimeoutError:
        raise AssertionError(f"the person is still in {found[:10]}") from None


def test_the_search_knows_every_form() -> None:
    """It finds what it is to find, wherever it stands, and no one else."""
    names = {name for name, _ in forms(FIRST)}
    assert len(names) > 100
    for text in (FIRST, MAIDEN, MARRIED, EMAIL):
        for name, needle in forms(text):
            assert PERSON.in_bytes(b"\x00before" + needle + b"after\xff"), name
    for before in range(6):
        hidden = base64.b64encode(b"x" * before + MARRIED.encode() + b"yz")
        assert PERSON.in_bytes(hidden)
        assert PERSON.in_bytes(
            base64.urlsafe_b64encode(b"\xff" * before + unicodedata.normalize("NFD", FIRST).encode())
        )
    assert PERSON.in_bytes(re.sub(r"\\u(....)", lambda m: f"\\u{m[1].upper()}", json.dumps({"n": FIRST})).encode())
    assert PERSON.in_bytes(MARRIED.encode()[3:15])
    assert not PERSON.in_bytes(json.dumps(OTHER).encode() * 100 + bytes(range(256)))


async def test_an_erased_person_is_in_no_byte_of_any_file(world: World) -> None:
    data = world.service.data_dir
    await world.start()
    account = await world.live()
    world.stop()
    world.kiseki("journal", "export", str(world.folder.parent / "before.jsonl"))
    backup = world.folder.parent / "backup"
    shutil.copytree(data, backup)

    # Where the person legitimately is, the search finds them; and nowhere else, so not in a backup of journal and keys.
    there = {found.path.relative_to(world.folder).parts[:2] for found in PERSON.in_files(world.folder)}
    assert there == {("data", "read-models")}
    assert not PERSON.in_files(world.folder.parent / "before.jsonl", backup / "journal.db", backup / "keys")

    await world.start()
    await world.send(ERASE, {"userAccountId": account}, key="erase-it")
    assert await world.ask(GET, id=account) is None
    assert await world.ask(SEARCH, t=MARRIED[3:]) == []
    await nowhere(PERSON, world.places)  # while it runs
    assert await world.send(ERASE, {"userAccountId": account}, key="erase-it") == account
    person = {"firstName": FIRST, "lastName": MAIDEN, "emailAddress": EMAIL}
    assert await world.send(CREATE, person, key="the-first-request") == account  # its first answer, nobody new
    # What the keyed request brought is nowhere either.
    await nowhere(PERSON, world.places)
    world.stop()
    world.kiseki("journal", "export", str(world.folder / "after.jsonl"))
    assert account in (world.folder / "after.jsonl").read_text()
    assert PERSON.in_files(*world.places) == []
    assert "1 erasure" in world.kiseki("erasure", "status")
    assert "UserAccountErased" in world.kiseki("journal", "show", f"UserAccount-{account}")


async def test_an_older_backup_is_put_back_and_nobody_is_back(world: World) -> None:
    data = world.service.data_dir
    await world.start()
    account = await world.live()
    world.stop()
    backup = world.folder.parent / "backup"
    shutil.copytree(data, backup)
    await world.start()
    await world.send(ERASE, {"userAccountId": account})
    world.stop()
    await restored(world, backup, account)


@pytest.mark.parametrize("part", ["journal.db", "keys", "read-models"])
async def test_an_older_copy_of_one_store_is_put_back_and_nobody_is_back(world: World, part: str) -> None:
    data = world.service.data_dir
    await world.start()
    account = await world.live()
    world.stop()
    backup = world.folder.parent / "backup"
    shutil.copytree(data, backup)
    await world.start()
    await world.send(ERASE, {"userAccountId": account})
    assert await world.ask(GET, id=account) is None
    world.stop()
    for path in data.glob(f"{part}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in backup.glob(f"{part}*"):
        shutil.copytree(path, data / path.name) if path.is_dir() else shutil.copy2(path, data)
    await comes_up_without(world, account)


async def test_stores_of_different_times_are_put_back_and_nobody_is_back(world: World) -> None:
    """The journal was copied before a rename, the read model after it: the fact that is made again comes too late for
    the read model, which is therefore built anew."""
    data = world.service.data_dir
    await world.start()
    account = await world.send(CREATE, {"firstName": FIRST, "lastName": MAIDEN, "emailAddress": EMAIL})
    world.stop()
    early = world.folder / "early"
    shutil.copytree(data, early)
    await world.start()
    await world.send(RENAME, {"userAccountId": account, "firstName": FIRST, "lastName": MARRIED})
    assert await world.ask(GET, id=account)
    world.stop()
    late = world.folder / "late"
    shutil.copytree(data, late)
    await world.start()
    await world.send(ERASE, {"userAccountId": account})
    world.stop()
    for backup, parts in ((early, ("journal.db", "keys")), (late, ("read-models",))):
        for part in parts:
            put_back(backup, data, part)
    world.token = ""
    await world.start()
    assert await world.ask(GET, id=account) is None
    assert "built anew" in world.service.log.read_text()


async def test_a_journal_from_before_the_person_and_a_read_model_from_after(world: World) -> None:
    data = world.service.data_dir
    await world.start()
    await world.send(CREATE, OTHER)
    world.stop()
    early = world.folder / "early"
    shutil.copytree(data, early)
    await world.start()
    account = await world.send(CREATE, {"firstName": FIRST, "lastName": MAIDEN, "emailAddress": EMAIL})
    assert await world.ask(GET, id=account)
    world.stop()
    late = world.folder / "late"
    shutil.copytree(data, late)
    await world.start()
    await world.send(ERASE, {"userAccountId": account})
    world.stop()
    put_back(early, data, "journal.db")
    for part in ("keys", "read-models"):
        put_back(late, data, part)
    world.token = ""
    await world.start()
    assert await world.ask(GET, id=account) is None


def put_back(backup: Path, data: Path, part: str) -> None:
    for path in data.glob(f"{part}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in backup.glob(f"{part}*"):
        shutil.copytree(path, data / path.name) if path.is_dir() else shutil.copy2(path, data)


async def restored(world: World, backup: Path, account: str) -> None:
    shutil.rmtree(world.service.data_dir)
    shutil.copytree(backup, world.service.data_dir)
    assert PERSON.in_files(world.service.data_dir)  # they are back, on disk
    await comes_up_without(world, account)


async def comes_up_without(world: World, account: str) -> None:
    """The service starts, answers nobody with the person at any moment, and then has none of them."""
    world.token = ""
    answers: list[Any] = []
    watching = asyncio.create_task(watch(world, account, answers))
    await world.start()
    assert await world.ask(GET, id=account) is None
    watching.cancel()
    assert [answer for answer in answers if answer is not None] == []
    assert await world.ask(SEARCH, t=MARRIED[3:]) == []
    await nowhere(PERSON, world.places)
    new = await world.send(CREATE, OTHER)
    assert await world.ask(GET, id=new) == {"firstName": "Someone", "lastName": "Else"}
    world.stop()
    assert PERSON.in_files(*world.places) == []
    shown = world.kiseki("journal", "show", f"UserAccount-{account}")
    assert shown.count("UserAccountErased") == 1
    assert "all in force" in world.kiseki("erasure", "verify")


async def watch(world: World, account: str, answers: list[Any]) -> None:
    """Asks again and again from before there is anybody to answer."""
    async with Client(world.service.query_port) as client:
        while True:
            try:
                reply = await client.graphql(GET, {"id": account})
                if reply.status == 200:
                    answers.append(reply.json()["data"]["getUserAccount"])
            except ConnectionLost:
                pass
            await asyncio.sleep(0.005)


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    try:
        made = PostgresServer()
        made.__enter__()
    except NoPostgres as problem:
        pytest.skip(f"PostgreSQL tests need a server: {problem}")
    try:
        yield made
    finally:
        made.stop()


async def test_on_postgresql_the_person_leaves_the_tables_and_then_the_log(
    tmp_path: Path, server: PostgresServer
) -> None:
    url = server.create_database()
    world = World(tmp_path / "w", KISEKI_JOURNAL=url, KISEKI_READ_MODEL=url)
    world.folder.mkdir()
    try:
        await world.start()
        account = await world.live()
        server.sql("CHECKPOINT", url)
        assert PERSON.in_files(server.data / "base")  # the read model
        dump = world.folder.parent / "before.sql"
        dump.write_text(server.run("pg_dump", url, "--schema=kiseki_journal", "--schema=kiseki_keys"))
        assert account in dump.read_text()
        assert PERSON.in_files(dump) == []
        await world.send(ERASE, {"userAccountId": account})
        assert await world.ask(GET, id=account) is None
        # The tables: kiseki vacuums by itself, so no statement can read the row any more.
        async with asyncio.timeout(30):
            while not int(server.sql(VACUUMED, url)):
                await asyncio.sleep(0.1)
        server.sql("CHECKPOINT", url)
        left = {found.path for found in PERSON.in_files(server.data / "base")}
        print(f"after the vacuum: bytes in the free space of pages of {len(left)} files")
        # What is left there goes when a page is written over, or a table is: by a rebuild, or by this.
        for table in server.sql(TABLES, url).split():
            server.sql(f"VACUUM FULL {table}", url)
        server.sql("CHECKPOINT", url)
        assert PERSON.in_files(server.data / "base") == []
        assert PERSON.in_files(*world.places, server.directory / "log") == []
        world.stop()
        after = server.run("pg_dump", url)
        assert account in after
        assert PERSON.in_bytes(after.encode()) == []
        # The write-ahead log keeps what it has until its files are used again, or removed: that is the operator's.
        in_log = PERSON.in_files(server.data / "pg_wal")
        assert {found.path.parent.name for found in PERSON.in_files(server.data)} <= {"pg_wal"}
        print(f"in the write-ahead log: {len({found.path for found in in_log})} files")
    finally:
        if world.service.process is not None:
            world.service.kill()
