"""S2, who may do what: the policy as a table, every operation by everybody, on the wire; no way around it by aliases,
fragments or variables; the admin pages and the schema; and `kiseki access show` says what the server does."""

# ruff: noqa: E501  # an operation is one line

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import pytest

from tests.e2e.client import Reply
from tests.servers.production import Production

LACKING: Final = 'Bearer realm="kiseki", error="insufficient_scope"'
PEOPLE: Final = ("nobody in particular", "another user", "the owner", "an administrator")
TOKEN: Final = "kiseki-consistency-token"


class World(NamedTuple):
    """A service with one account, and everybody's tokens."""

    service: Production
    account: str
    consistency: str

    def token(self, who: str) -> str:
        tokens = self.service.tokens
        match who:
            case "nobody in particular":
                return tokens.made(tokens.claims("nobody"))
            case "another user":
                return tokens.user("another", userId="01ANOTHER0000000000000000A")
            case "the owner":
                return tokens.user("an-owner", userId=self.account)
            case _:
                return tokens.admin()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with Production(tmp_path_factory.mktemp("access"), TRUSTED_PROXIES="127.0.0.1/32") as service:
        yield World(service, *asyncio.run(created(service)))


async def created(service: Production, name: str = "Somebody") -> tuple[str, str]:
    """A new account: its id, and a consistency token."""
    document = f'mutation {{ createUserAccount(input: {{firstName: "{name}", lastName: "X", emailAddress: "a@example.com"}}) {{ id }} }}'
    reply = await service.graphql("command", document, token=service.tokens.admin())
    assert reply.status == 200
    return str(reply.json()["data"]["createUserAccount"]["id"]), reply.headers[TOKEN]


class Operation(NamedTuple):
    """An operation as a document, and what becomes of it for each of PEOPLE: `yes`, `roles` (403) or `own` (a field
    error, since it depends on the object)."""

    api: str
    name: str
    document: str
    verdicts: tuple[str, str, str, str]


OWN: Final = ("roles", "own", "yes", "yes")
ADMINS: Final = ("roles", "roles", "roles", "yes")
USERS: Final = ("roles", "yes", "yes", "yes")

OPERATIONS: Final = (
    Operation(
        "command",
        "createUserAccount",
        'mutation {{ createUserAccount(input: {{firstName: "A", lastName: "B", emailAddress: "a@example.com"}}) {{ id }} }}',
        USERS,
    ),
    Operation(
        "command",
        "renameUserAccount",
        'mutation {{ renameUserAccount(input: {{userAccountId: "{id}", firstName: "{id}", lastName: "{who}"}}) {{ id }} }}',
        OWN,
    ),
    Operation(
        "command",
        "deleteUserAccount",
        'mutation {{ deleteUserAccount(input: {{userAccountId: "{id}"}}) {{ id }} }}',
        OWN,
    ),
    Operation(
        "command", "eraseUserAccount", 'mutation {{ eraseUserAccount(input: {{userAccountId: "{id}"}}) {{ id }} }}', OWN
    ),
    Operation("query", "getUserAccount", '{{ getUserAccount(userAccountId: "{id}") {{ id }} }}', OWN),
    Operation("query", "getUserAccountsByIds", '{{ getUserAccountsByIds(userAccountIds: ["{id}"]) {{ id }} }}', OWN),
    Operation("query", "getUserAccounts", "{{ getUserAccounts {{ id }} }}", ADMINS),
    Operation("query", "searchUserAccounts", '{{ searchUserAccounts(searchTerm: "Some") {{ id }} }}', ADMINS),
)


def is_refused_by_roles(reply: Reply, operation: str) -> None:
    assert (reply.status, reply.headers["www-authenticate"]) == (403, LACKING), reply.body
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["code"] == "FORBIDDEN"
    assert "data" not in reply.json()
    assert operation in reply.json()["detail"]


def is_refused_as_not_own(reply: Reply) -> None:
    assert reply.status == 200, reply.body
    answer = reply.json()
    assert [error["extensions"]["code"] for error in answer["errors"]] == ["FORBIDDEN"]
    assert answer["data"] is None or set(answer["data"].values()) <= {None}


@pytest.mark.parametrize("who", PEOPLE)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_the_table(world: World, operation: Operation, who: str) -> None:
    account = world.account
    expected = operation.verdicts[PEOPLE.index(who)]
    if expected == "yes" and operation.name.startswith(("delete", "erase")):
        account, _ = await created(world.service)  # one to lose
    named = world._replace(account=account)
    before = world.service.commits()
    reply = await world.service.graphql(
        operation.api,
        operation.document.format(id=account, who=who),
        token=named.token(who),
        **{TOKEN: world.consistency},
    )
    if expected == "yes":
        assert reply.status == 200
        assert "errors" not in reply.json(), reply.body
    elif expected == "roles":
        is_refused_by_roles(reply, operation.name)
    else:
        is_refused_as_not_own(reply)
    if expected != "yes" or operation.api == "query":
        assert world.service.commits() == before


def test_the_table_is_what_access_show_says(world: World) -> None:
    done = world.service.kiseki("access", "show", "--json", data_dir=False)
    shown = {row["operation"]: row for row in json.loads(done.stdout)}
    expected = {
        USERS: (["admin", "user"], []),
        OWN: (["admin"], ["user"]),
        ADMINS: (["admin"], []),
    }
    for operation in OPERATIONS:
        row = shown.pop(operation.name)
        assert (row["every_object"], row["own_object"]) == expected[operation.verdicts], operation.name
        assert row["kind"] == ("command" if operation.api == "command" else "query")
    # What is left are pages, and there is none that the tests below do not know.
    assert {name: row["every_object"] for name, row in shown.items()} == {
        "GET /api/admin/users": ["admin"],
        "GET /api/graphql/schema": ["admin"],
    }


async def test_the_table_has_every_operation_of_the_schema(world: World) -> None:
    found = set()
    for api in ("command", "query"):
        schema = (
            await world.service.get("/api/graphql/schema", api=api, token=world.token("an administrator"))
        ).body.decode()
        root = "type Mutation {" if api == "command" else "type Query {"
        block = schema[schema.index(root) :].split("\n}", 1)[0]
        found |= set(re.findall(r"^  ([a-z]\w*)(?:\(|: )", block, re.MULTILINE))
    assert found - {"health"} == {operation.name for operation in OPERATIONS}


OTHERS: Final = (
    ("alias", '{ getUserAccount: getUserAccounts { id } }'),
    ("alias of an open field", '{ __typename: getUserAccounts { id } }'),
    ("alias that says health", '{ health: getUserAccounts { id } }'),
    ("behind a field that is allowed", '{ own: getUserAccount(userAccountId: "ID") { id } all: getUserAccounts { id } }'),
    ("fragment", '{ ...f } fragment f on Query { getUserAccounts { id } }'),
    ("fragment in a fragment", '{ ...f } fragment f on Query { ...g } fragment g on Query { a: getUserAccounts { id } }'),
    ("inline fragment", '{ ... on Query { ... { getUserAccounts { id } } } }'),
    ("another operation in front", 'query a { __typename } query b { getUserAccounts { id } }'),
    ("directive that is true", '{ getUserAccounts @include(if: true) { id } }'),
    ("directive by a variable", 'query ($yes: Boolean!) { getUserAccounts @include(if: $yes) { id } }'),
    ("search", '{ searchUserAccounts(searchTerm: "") { id } }'),
)  # fmt: skip


@pytest.mark.parametrize(("name", "document"), OTHERS, ids=[name for name, _ in OTHERS])
async def test_no_way_of_writing_it_gets_a_user_everybodys_accounts(world: World, name: str, document: str) -> None:
    body = {"query": document.replace("ID", world.account), "variables": {"yes": True}}
    if name == "another operation in front":
        body["operationName"] = "b"
    async with world.service.client("query") as client:
        headers = {"content-type": "application/json", "authorization": f"Bearer {world.token('the owner')}"}
        reply = await client.request("POST", "/api/graphql", json.dumps(body).encode(), headers)
    is_refused_by_roles(reply, "UserAccounts")


MUTATE: Final = "mutation ($i: DeleteUserAccountInput!) { deleteUserAccount(input: $i) { id } }"


async def test_objects_of_others_are_not_reached_by_variables_aliases_or_defaults(world: World) -> None:
    """The owner's own account is one of the two each time; the other one is never touched, nor shown."""
    other, consistency = await created(world.service, "Other")
    own, token = world.account, world.service.tokens.user("a-thief", userId=world.account)
    queries: tuple[tuple[str, Any], ...] = (
        ("query ($a: String!) { getUserAccount(userAccountId: $a) { id } }", {"a": other}),
        (f'query ($a: String! = "{other}") {{ getUserAccount(userAccountId: $a) {{ id }} }}', None),
        (f'{{ getUserAccount(userAccountId: "{other.lower()}") {{ id }} }}', None),
        (f'{{ getUserAccount(userAccountId: "{other} ") {{ id }} }}', None),
        ("query ($a: [String!]!) { getUserAccountsByIds(userAccountIds: $a) { id } }", {"a": [own, other]}),
        ("query ($a: [String!]!) { getUserAccountsByIds(userAccountIds: $a) { id } }", {"a": [other, own]}),
        ("query ($a: [String!]!) { getUserAccountsByIds(userAccountIds: $a) { id } }", {"a": []}),
        ("query ($a: [String!]!) { getUserAccountsByIds(userAccountIds: $a) { id } }", {"a": other}),
    )
    for document, variables in queries:
        reply = await world.service.graphql("query", document, variables, token=token, **{TOKEN: consistency})
        assert reply.status == 200, reply.body
        assert other not in reply.body.decode()
        assert all(not value for value in (reply.json()["data"] or {}).values()), reply.body
    both = f'{{ mine: getUserAccount(userAccountId: "{own}") {{ id }} theirs: getUserAccount(userAccountId: "{other}") {{ id }} }}'
    answer = (await world.service.graphql("query", both, token=token, **{TOKEN: world.consistency})).json()
    assert answer["data"] == {"mine": {"id": own}, "theirs": None}
    assert [error["path"] for error in answer["errors"]] == [["theirs"]]
    before = world.service.commits()
    for document, variables in (
        (MUTATE, {"i": {"userAccountId": other}}),
        (f'mutation {{ deleteUserAccount: deleteUserAccount(input: {{userAccountId: "{other}"}}) {{ id }} }}', None),
        (
            f'mutation {{ ...f }} fragment f on Mutation {{ a: eraseUserAccount(input: {{userAccountId: "{other}"}}) {{ id }} }}',
            None,
        ),
        (
            f'mutation {{ a: renameUserAccount(input: {{userAccountId: "{other}", firstName: "M", lastName: "M"}}) {{ id }} }}',
            None,
        ),
    ):
        is_refused_as_not_own(await world.service.graphql("command", document, variables, token=token))
    assert world.service.commits() == before
    record = await world.service.recorded(
        lambda one: one["kind"] == "access.denied" and one.get("subject") == "a-thief"
    )
    assert (record["outcome"], record["api"]) == ("refused", "query")


async def test_the_account_is_the_claim_user_id_or_else_the_subject(world: World) -> None:
    tokens, document = world.service.tokens, f'{{ getUserAccount(userAccountId: "{world.account}") {{ id }} }}'

    async def allowed(token: str) -> bool:
        reply = await world.service.graphql("query", document, token=token, **{TOKEN: world.consistency})
        return bool(reply.json()["data"]["getUserAccount"])

    assert await allowed(tokens.user(world.account))
    assert await allowed(tokens.user("x", userId=world.account))
    # A subject that is somebody's account, of a token that says it is of another account.
    assert not await allowed(tokens.user(world.account, userId="01ANOTHER0000000000000000A"))
    assert not await allowed(tokens.user("x", account=world.account, user_id=world.account, userID=world.account))


@pytest.mark.parametrize(
    "role",
    ["Admin", "ADMIN", " admin", "admin\u200b", "аdmin", "admin,user", "*", "root", "administrator", "adm", "users"],
)
async def test_roles_are_matched_exactly(world: World, role: str) -> None:
    token = world.service.tokens.made(world.service.tokens.claims("x", role))
    is_refused_by_roles(
        await world.service.graphql("query", "{ getUserAccounts { id } }", token=token), "getUserAccounts"
    )
    assert (await world.service.get("/api/admin/users", token=token)).status == 403


@pytest.mark.parametrize(
    "claim", ["role", "scope", "scp", "groups", "permissions", "Roles", "realm_access", "is_admin"]
)
async def test_roles_come_from_the_claim_roles_alone(world: World, claim: str) -> None:
    token = world.service.tokens.made(world.service.tokens.claims("x", "user", **{claim: ["admin"]}))
    is_refused_by_roles(
        await world.service.graphql("query", "{ getUserAccounts { id } }", token=token), "getUserAccounts"
    )


@pytest.mark.parametrize(
    "document",
    [
        "{ __schema { types { name } } }",
        '{ __type(name: "UserAccount") { name } }',
        "{ __typename ...f } fragment f on Query { __schema { queryType { name } } }",
    ],
)
@pytest.mark.parametrize("api", ["command", "query"])
async def test_there_is_no_introspection_for_anybody(world: World, api: str, document: str) -> None:
    for who in PEOPLE:
        reply = await world.service.graphql(api, document, token=world.token(who))
        assert (reply.status, reply.json()["code"]) == (422, "INVALID_DOCUMENT")
        assert b"UserAccount" not in reply.body


@pytest.mark.parametrize("api", ["command", "query"])
async def test_the_schema_is_for_administrators(world: World, api: str) -> None:
    for who in PEOPLE[:-1]:
        reply = await world.service.get("/api/graphql/schema", api=api, token=world.token(who))
        assert (reply.status, reply.headers["www-authenticate"]) == (403, LACKING)
        assert b"UserAccount" not in reply.body
    reply = await world.service.get("/api/graphql/schema", api=api, token=world.token("an administrator"))
    assert reply.status == 200
    assert b"UserAccount" in reply.body


# GET /api/admin/users


@pytest.mark.parametrize("who", PEOPLE[:-1])
async def test_the_admin_page_is_for_administrators(world: World, who: str) -> None:
    for path in ("/api/admin/users", "/api/admin/users?first=1", "/api/admin/users?first=nonsense"):
        reply = await world.service.get(path, token=world.token(who))
        assert (reply.status, reply.headers["www-authenticate"]) == (403, LACKING)
        assert world.account not in reply.body.decode()
    spy = f"a-spy-like-{who}"
    await world.service.get("/api/admin/users", token=world.service.tokens.user(spy))
    record = await world.service.recorded(lambda one: one["kind"] == "access.denied" and one.get("subject") == spy)
    assert (record["kind"], record["code"], record["operation"]) == ("access.denied", "ROLES", "GET /api/admin/users")


async def test_the_admin_page_shows_everybody_in_pages(world: World) -> None:
    admin = world.token("an administrator")
    made = [await created(world.service, f"Page{number}") for number in range(7)]
    consistency = {TOKEN: made[-1][1]}
    whole = (await world.service.get("/api/admin/users?first=1000", token=admin, **consistency)).json()
    assert whole["next"] is None
    everybody = [row["id"] for row in whole["users"]]
    assert [account for account, _ in made] == everybody[-7:]
    for size in (1, 2, 3, 5, len(everybody)):
        seen: list[str] = []
        after = ""
        for _ in range(len(everybody) + 2):
            page = (await world.service.get(f"/api/admin/users?first={size}{after}", token=admin)).json()
            assert len(page["users"]) <= size
            seen += [row["id"] for row in page["users"]]
            if page["next"] is None:
                break
            assert page["next"] == page["users"][-1]["id"]
            after = f"&after={page['next']}"
        # Others may have made some meanwhile; nobody is left out or there twice.
        assert seen[: len(everybody)] == everybody
        assert len(set(seen)) == len(seen)
    record = await world.service.recorded(lambda one: one["kind"] == "admin.users")
    assert (record["subject"], record["operation"], record["outcome"]) == (
        "the-administrator",
        "GET /api/admin/users",
        "done",
    )


WRONG: Final = (
    "first=abc", "first=-1", "first=1.5", "first=1e3", "first=", "first", "first=1&first=2", "first=0x10", "first=%31%00", "first=99999999999",
    "after", "size=1", "first=1&size=2", "first=1&after=a&after=b", "FIRST=1", "first=１", "first=%EF%BC%91", "first=+1", "a=b&c=d&e=f",
    "first=1;after=x", "first[]=1", "%", "%ff=1", "first=1&", "&", "=", "after=%00", "after=%ff", "after=%ED%A0%80",
)  # fmt: skip


@pytest.mark.parametrize("query", WRONG)
async def test_wrong_parameters_are_refused(world: World, query: str) -> None:
    path = f"/api/admin/users?{query}"
    reply = await world.service.get(path, token=world.token("an administrator"))
    assert reply.status == 400, reply.body
    if reply.headers.get("content-type"):
        assert reply.headers["content-type"] == "application/problem+json"
        assert b"firstName" not in reply.body


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("first=0", "INVALID_INPUT"),
        ("first=1001", "INVALID_INPUT"),
        ("first=90000", "INVALID_INPUT"),
        ("after=nobody", "UNKNOWN_CURSOR"),
        ("after=01ANOTHER0000000000000000A", "UNKNOWN_CURSOR"),
        ("after=' OR 1=1 --".replace(" ", "%20"), "INVALID_INPUT"),
        ("after=", "INVALID_INPUT"),
    ],
)
async def test_sizes_and_cursors_that_there_are_none_of(world: World, query: str, code: str) -> None:
    reply = await world.service.get(f"/api/admin/users?{query}", token=world.token("an administrator"))
    assert (reply.status, reply.json()["code"]) == (400, code)


async def test_methods_and_consistency_tokens_of_the_admin_page(world: World) -> None:
    admin = {"authorization": f"Bearer {world.token('an administrator')}"}
    async with world.service.client("query") as client:
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            reply = await client.request(method, "/api/admin/users", headers=admin)
            assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")
        assert (await client.request("HEAD", "/api/admin/users", headers=admin)).status == 200
        for token in ("garbage", "v1.AAAA", ""):
            reply = await client.request("GET", "/api/admin/users", headers={**admin, TOKEN: token})
            assert (reply.status, reply.json()["code"]) == (400, "INVALID_TOKEN")
        for path in (
            "/api/admin",
            "/api/admin/",
            "/api/admin/users/",
            "/api/admin/user_accounts",
            "/api/admin/../admin/users",
            "/api/admin/Users",
        ):
            assert (await client.request("GET", path, headers=admin)).status == 404
        account, consistency = await created(world.service)
        reply = await client.request("GET", "/api/admin/users?first=1000", headers={**admin, TOKEN: consistency})
        assert account in [row["id"] for row in reply.json()["users"]]
    async with world.service.client("command") as client:
        assert (await client.request("GET", "/api/admin/users", headers=admin)).status == 404


def test_denials_name_who_was_denied_and_nothing_of_the_request(world: World) -> None:
    async def deny() -> dict[str, Any]:
        token = world.service.tokens.user("denied", email="denied@example.com")
        await world.service.graphql(
            "query",
            '{ searchUserAccounts(searchTerm: "very-private") { id } }',
            token=token,
            **{"x-forwarded-for": "198.51.100.9"},
        )
        return await world.service.recorded(
            lambda one: one["kind"] == "access.denied" and one.get("subject") == "denied"
        )

    record = asyncio.run(deny())
    assert (record["kind"], record["api"], record["operation"], record["address"]) == (
        "access.denied",
        "query",
        "searchUserAccounts",
        "198.51.100.9",
    )
    assert len(record["trace_id"]) == 32
    assert "very-private" not in json.dumps(record) + world.service.log()
    assert "denied@example.com" not in json.dumps(record) + world.service.log()
