"""S8, personal data at rest: in everything that a production service writes, a person is in the read model alone; once
erased, by themselves or by an administrator, they are nowhere; and nobody else can erase them. By a search for bytes in
every form that text takes (`tests/e2e/person_search.py`); restores are in `tests/e2e/test_erasure.py`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import pytest

from tests.e2e.client import Reply
from tests.e2e.person_search import PersonSearch
from tests.servers.production import Production

CREATE: Final = "mutation ($i: CreateUserAccountInput!) { createUserAccount(input: $i) { id } }"
RENAME: Final = "mutation ($i: RenameUserAccountInput!) { renameUserAccount(input: $i) { id } }"
ERASE: Final = "mutation ($i: EraseUserAccountInput!) { eraseUserAccount(input: $i) { id } }"
GET: Final = "query ($id: String!) { getUserAccount(userAccountId: $id) { firstName lastName } }"
SEARCH: Final = "query ($t: String!) { searchUserAccounts(searchTerm: $t) { id firstName } }"
TOKEN: Final = "kiseki-consistency-token"


class Person:
    """Somebody whom a search can't mistake for another, with everything of them that a client ever sends."""

    def __init__(self, first: str, last: str, married: str, email: str) -> None:
        self.first, self.last, self.married, self.email = first, last, married, email
        self.search = PersonSearch(first, last, married, email)
        self.account = ""

    def token(self, service: Production, **more: Any) -> str:
        """Of the person, whose claims say more of them than kiseki needs to know."""
        about = {"email": self.email, "name": f"{self.first} {self.last}", "given_name": self.first}
        return service.tokens.user("a-person", userId=self.account or None, **about, **more)


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    folder = tmp_path_factory.mktemp("personal") / "p"
    with Production(folder, "--log-level", "debug", SNAPSHOT_EVERY=1) as running:
        yield running


@pytest.fixture
def person(request: pytest.FixtureRequest) -> Person:
    # Another one for each test: what one left behind is not to be taken for what another did.
    # Ten bytes in a row are a person to the search, so no two have that many in common.
    number = f"{crc32(request.node.name.encode()):010}"
    letters = "".join(chr(ord("a") + int(digit)) for digit in number)
    return Person(
        f"Ž{letters}ié", f"Þ{letters[::-1]}á", f"Æ{letters[5:]}-Ñ{letters[:5]}", f"{letters}@{number}.example"
    )


async def done(production: Production, document: str, given: dict[str, Any], token: str, **headers: str) -> Reply:
    reply = await production.graphql("command", document, {"i": given}, token=token, **headers)
    assert reply.status == 200, reply.body
    assert "errors" not in reply.json(), reply.body
    return reply


async def lived(production: Production, person: Person) -> str:
    """The person gets into every place that a person gets to; a consistency token."""
    given = {"firstName": person.first, "lastName": person.last, "emailAddress": person.email}
    reply = await done(
        production,
        CREATE,
        given,
        person.token(production),
        **{"idempotency-key": f"create-{crc32(person.email.encode())}"},
    )
    person.account = str(reply.json()["data"]["createUserAccount"]["id"])
    renamed = {"userAccountId": person.account, "firstName": person.first, "lastName": person.married}
    reply = await done(production, RENAME, renamed, person.token(production))
    token = reply.headers[TOKEN]
    shown = await production.graphql(
        "query", GET, {"id": person.account}, token=person.token(production), **{TOKEN: token}
    )
    assert shown.json()["data"]["getUserAccount"] == {"firstName": person.first, "lastName": person.married}
    found = await production.graphql("query", SEARCH, {"t": person.married[3:]}, token=production.tokens.admin())
    assert [row["id"] for row in found.json()["data"]["searchUserAccounts"]] == [person.account]
    # Refusals, of which logs tell, with the person in what was refused.
    for document, variables in (
        (GET, {"id": person.email}),
        (f"{{ getUserAccount(userAccountId: {json.dumps(person.first)}) {{ id }} }}", None),
        (SEARCH, {"t": person.married, "nothing": person.email}),
        ("query " + person.email, None),
    ):
        await production.graphql("query", document, variables, token=person.token(production))
    bad = {"firstName": person.first, "lastName": person.last + "\0", "emailAddress": person.email}
    await production.graphql("command", CREATE, {"i": bad}, token=person.token(production))
    await production.graphql("command", CREATE, {"i": {**bad, "lastName": 1}}, token=person.token(production, exp=1))
    return token


def places(production: Production) -> list[Path]:
    """Everything that was written: data, audit, anchors, ledger, logs."""
    return [production.folder]


async def found_in(production: Production, person: Person) -> set[str]:
    found = await asyncio.to_thread(person.search.in_files, *places(production))
    return {str(one.path.relative_to(production.folder)) for one in found}


async def test_a_person_is_in_the_read_model_alone(production: Production, person: Person, tmp_path: Path) -> None:
    await lived(production, person)
    inside = await found_in(production, person)
    assert inside  # the search can find them
    assert {Path(name).parts[:2] for name in inside} == {("data", "read-models")}
    export = tmp_path / "export.jsonl"
    exported = production.kiseki("journal", "export", str(export))
    assert exported.returncode == 0, exported.stderr
    assert person.account in export.read_text()
    trail = tmp_path / "audit.jsonl"
    assert production.kiseki("audit", "export", str(trail)).returncode == 0
    assert "a-person" in trail.read_text()
    assert person.search.in_files(export, trail) == []
    shown = (await production.manage("/metrics")).body + (await production.manage("/ready")).body
    assert person.search.in_bytes(shown) == []


async def erased(production: Production, person: Person, token: str, consistency: str) -> None:
    """By this token; then they are nowhere."""
    reply = await done(production, ERASE, {"userAccountId": person.account}, token)
    consistent = {TOKEN: reply.headers.get(TOKEN, consistency)}
    shown = await production.graphql(
        "query", GET, {"id": person.account}, token=production.tokens.admin(), **consistent
    )
    assert shown.json()["data"]["getUserAccount"] is None
    found = await production.graphql("query", SEARCH, {"t": person.married[3:]}, token=production.tokens.admin())
    assert found.json()["data"]["searchUserAccounts"] == []
    async with asyncio.timeout(20):
        while left := await found_in(production, person):
            await asyncio.sleep(0.2)
    assert left == set()
    # Even the page of administrators, and the same request again.
    page = await production.get("/api/admin/users?first=1000", token=production.tokens.admin())
    assert person.search.in_bytes(page.body) == []
    again = {"firstName": person.first, "lastName": person.last, "emailAddress": person.email}
    repeated = await production.graphql(
        "command",
        CREATE,
        {"i": again},
        token=person.token(production),
        **{"idempotency-key": f"create-{crc32(person.email.encode())}"},
    )
    assert person.search.in_bytes(repeated.body) == []
    requested = await production.recorded(
        lambda one: one["kind"] == "erasure.requested" and person.account in json.dumps(one)
    )
    assert requested["outcome"] == "done"
    # Of several that end within ten seconds, the log has one record and their number.
    await production.recorded(lambda one: one["kind"] == "erasure.done")


async def test_the_owner_erases_themselves(production: Production, person: Person) -> None:
    consistency = await lived(production, person)
    await erased(production, person, person.token(production), consistency)


async def test_an_administrator_erases_somebody(production: Production, person: Person) -> None:
    consistency = await lived(production, person)
    await erased(production, person, production.tokens.admin(), consistency)
    verified = production.kiseki("erasure", "verify")
    assert (verified.returncode, "all in force" in verified.stdout) == (0, True)


async def test_nobody_else_erases_anybody(production: Production, person: Person) -> None:
    await lived(production, person)
    tokens = production.tokens
    before = production.commits()
    for token, status in (
        (tokens.user("another", userId="01ANOTHER0000000000000000A"), 200),
        (tokens.user("another"), 200),
        (tokens.user(person.account, userId="01ANOTHER0000000000000000A"), 200),
        (tokens.user("another", userId=person.account.lower()), 200),
        (tokens.made(tokens.claims(person.account)), 403),
        (tokens.made(tokens.claims(person.account, "owner", "eraser")), 403),
    ):
        reply = await production.graphql("command", ERASE, {"i": {"userAccountId": person.account}}, token=token)
        assert reply.status == status
        errors = reply.json()["errors"]
        assert [error["extensions"]["code"] for error in errors] == ["FORBIDDEN"]
    assert production.commits() == before
    shown = await production.graphql("query", GET, {"id": person.account}, token=person.token(production))
    assert shown.json()["data"]["getUserAccount"]["firstName"] == person.first
    assert not [
        one for one in production.records() if one["kind"].startswith("erasure") and person.account in json.dumps(one)
    ]


async def test_the_ledger_and_the_keys_are_apart(production: Production, person: Person) -> None:
    """What a backup of `data_dir` has is not enough to read anybody, and does not undo an erasure."""
    await lived(production, person)
    master = (production.secrets / "master").read_bytes()
    for path in production.data.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert master not in content
            assert master.hex().encode() not in content
    assert production.ledger.is_dir()
    assert not production.ledger.is_relative_to(production.data)
    # Another master key opens nothing.
    elsewhere = production.folder.parent / "another-key"
    elsewhere.write_bytes(bytes(range(32)))
    elsewhere.chmod(0o600)
    refused = production.kiseki("keys", "status", MASTER_KEY=str(elsewhere))
    assert refused.returncode != 0
