"""The command API's endpoint, without HTTP around it: bodies in, answers out, as the wire contract has them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
from graphql import print_schema

from kiseki.graphql.answers import Answer
from kiseki.graphql.documents import DocumentCache
from kiseki.graphql.endpoint import GraphQLEndpoint, GraphQLRequest
from kiseki.graphql.limits import DocumentLimits
from kiseki.graphql.schema import command_schema
from kiseki.journal.port import START, JournalUnavailable
from kiseki.kernel.ports import AuditUnavailable, Principal
from kiseki.query.consistency import ConsistencyToken
from kiseki.users import app
from tests.support import Audited, World

CREATE = "mutation ($input: CreateUserAccountInput!) { createUserAccount(input: $input) { id } }"
RENAME = "mutation ($input: RenameUserAccountInput!) { renameUserAccount(input: $input) { id } }"
TARO = {"firstName": "太郎", "lastName": "山田", "emailAddress": "taro@example.com"}
USER = Principal(subject="alice", actor="pseudonym", roles=frozenset({"user"}), user_id="alice", issuer="tests")
ADMIN = Principal(subject="root", actor="another", roles=frozenset({"admin"}), user_id="root", issuer="tests")
STRANGER = Principal(subject="eve", actor="pseudonym", roles=frozenset({"usr", "User", ""}))


class Api:
    """The endpoint as a client sees it."""

    def __init__(self, world: World) -> None:
        schema = command_schema(app)
        self.audited = Audited()
        self.endpoint = GraphQLEndpoint(
            schema=schema,
            kind="CommandError",
            documents=DocumentCache(schema, limits=DocumentLimits(), introspection=False),
            access=app.access,
            auditor=self.audited,
            commands=world.handler(app),
        )

    async def send(self, body: bytes, **more: Any) -> Answer:
        options = {"principal": ADMIN, "trace_id": "t" * 32, "correlation_id": "c", **more}
        return await self.endpoint.handle(GraphQLRequest(body=body, **options))

    async def post(
        self, query: str, variables: Any = None, **more: Any
    ) -> tuple[int, dict[str, Any], dict[bytes, bytes]]:
        body = json.dumps({"query": query, "variables": variables}).encode()
        answer = await self.send(body, **more)
        return answer.status, json.loads(answer.body), dict(answer.headers)


@pytest.fixture
def api(world: World) -> Api:
    return Api(world)


async def nothing_written(world: World) -> bool:
    return (await world.journal.feed(START)).commits == ()


async def test_create_and_rename(api: Api, world: World) -> None:
    status, body, headers = await api.post(CREATE, {"input": TARO})
    assert status == 200
    account = body["data"]["createUserAccount"]["id"]
    assert headers[b"content-type"] == b"application/json; charset=utf-8"
    token = headers[b"kiseki-consistency-token"].decode()
    assert body["extensions"] == {"consistencyToken": token}
    assert ConsistencyToken.parse(token).pairs == ((f"UserAccount-{account}", 1),)
    _, body, headers = await api.post(
        RENAME,
        {"input": {"userAccountId": account, "firstName": "花子", "lastName": "山田"}},
        consistency_token=ConsistencyToken([("Other-1", 7)]).encode(),
    )
    assert body["data"] == {"renameUserAccount": {"id": account}}
    merged = ConsistencyToken.parse(headers[b"kiseki-consistency-token"].decode())
    assert merged.pairs == (("Other-1", 7), (f"UserAccount-{account}", 2))


async def test_several_mutations_run_in_order_and_fail_alone(api: Api) -> None:
    query = """mutation {
        a: createUserAccount(input: {firstName: "A", lastName: "B", emailAddress: "a@example.com"}) { id }
        b: deleteUserAccount(input: {userAccountId: "unknown"}) { id }
        c: createUserAccount(input: {firstName: "C", lastName: "D", emailAddress: "c@example.com"}) { id }
    }"""
    status, body, _ = await api.post(query)
    assert status == 200
    assert body["data"]["b"] is None
    assert body["data"]["a"]["id"] != body["data"]["c"]["id"]
    (error,) = body["errors"]
    assert error["path"] == ["b"]
    assert error["extensions"] == {"type": "CommandError", "code": "ACCOUNT_NOT_FOUND", "traceId": "t" * 32}


async def test_unacceptable_input_names_every_field_and_writes_nothing(api: Api, world: World) -> None:
    bad = {"firstName": "x" * 51, "lastName": "a\0b", "emailAddress": "nobody"}
    status, body, _ = await api.post(CREATE, {"input": bad})
    assert status == 200
    assert body["data"] == {"createUserAccount": None}
    extensions = body["errors"][0]["extensions"]
    assert (extensions["type"], extensions["code"]) == ("ValidationError", "INVALID_INPUT")
    assert {(tuple(e["path"]), e["code"]) for e in extensions["errors"]} == {
        (("input", "firstName"), "TOO_LONG"),
        (("input", "lastName"), "FORBIDDEN_CHARACTER"),
        (("input", "emailAddress"), "INVALID_EMAIL_ADDRESS"),
    }
    assert await nothing_written(world)


@pytest.mark.parametrize(
    ("change", "path", "code"),
    [
        ({"firstName": 1}, ["input", "firstName"], "WRONG_TYPE"),
        ({"firstName": None}, ["input", "firstName"], "REQUIRED"),
        ({"firstName": ["太郎"]}, ["input", "firstName"], "WRONG_TYPE"),
        ({"surname": "x"}, ["input", "surname"], "UNKNOWN_FIELD"),
    ],
)
async def test_variables_that_do_not_fit_are_422_and_name_the_field(
    api: Api, world: World, change: dict[str, Any], path: list[str], code: str
) -> None:
    status, body, headers = await api.post(CREATE, {"input": {**TARO, **change}})
    assert status == 422
    assert headers[b"content-type"] == b"application/problem+json"
    assert (body["status"], body["code"], body["traceId"]) == (422, "INVALID_VARIABLES", "t" * 32)
    (error,) = body["errors"]
    assert error["extensions"]["errors"] == [
        {"path": path, "code": code, "message": error["extensions"]["errors"][0]["message"]}
    ]
    assert await nothing_written(world)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "UNPARSABLE_JSON"),
        (b"{", 400, "UNPARSABLE_JSON"),
        (b"\xff\xfe", 400, "UNPARSABLE_JSON"),
        (b'{"query": "{ health }\xff"}', 400, "UNPARSABLE_JSON"),
        (b'{"query": "\\ud800"}', 400, "UNPARSABLE_JSON"),
        (b'{"query": "{health}", "variables": {"x": NaN}}', 400, "UNPARSABLE_JSON"),
        (b'{"variables": {"x": ' + b"[" * 100_000, 400, "UNPARSABLE_JSON"),
        (b'{"query": "{health}", "variables": {"x": 1e999}}', 400, "MALFORMED_REQUEST"),
        (b"[]", 400, "MALFORMED_REQUEST"),
        (b'[{"query": "{ health }"}]', 400, "MALFORMED_REQUEST"),
        (b"null", 400, "MALFORMED_REQUEST"),
        (b"{}", 400, "MALFORMED_REQUEST"),
        (b'{"query": 1}', 400, "MALFORMED_REQUEST"),
        (b'{"query": "{ health }", "variables": []}', 400, "MALFORMED_REQUEST"),
        (b'{"query": "{ health"}', 400, "UNPARSABLE_DOCUMENT"),
        (b'{"query": "{ unknown }"}', 422, "INVALID_DOCUMENT"),
        (b'{"query": "{ __schema { types { name } } }"}', 422, "INVALID_DOCUMENT"),
        (b'{"query": "{ health }", "operationName": "X"}', 422, "UNKNOWN_OPERATION"),
        (b'{"query": "query A { health } query B { health }"}', 422, "OPERATION_NOT_NAMED"),
    ],
)
async def test_what_is_no_request_gets_its_status(api: Api, body: bytes, status: int, code: str) -> None:
    answer = await api.send(body)
    problem = json.loads(answer.body)
    assert (answer.status, problem["code"]) == (status, code)
    assert dict(answer.headers)[b"content-type"] == b"application/problem+json"
    assert problem["errors"][0]["extensions"]["traceId"] == "t" * 32
    answer = await api.send(body, graphql_response=True)
    assert dict(answer.headers)[b"content-type"] == b"application/graphql-response+json; charset=utf-8"
    assert set(json.loads(answer.body)) == {"errors"}


async def test_literals_that_do_not_fit_are_422_without_a_suggestion(api: Api) -> None:
    query = 'mutation { createUserAccount(input: {firstNam: "x"}) { id } }'
    status, body, _ = await api.post(query)
    assert status == 422
    text = json.dumps(body)
    assert "firstNam" in text
    assert "mean" not in text


async def test_roles_are_matched_exactly_and_nothing_of_the_document_runs(api: Api, world: World) -> None:
    query = f"mutation {{ health: __typename createUserAccount(input: {as_literal(TARO)}) {{ id }} }}"
    status, body, headers = await api.post(query, principal=STRANGER)
    assert (status, body["code"]) == (403, "FORBIDDEN")
    assert headers[b"www-authenticate"] == b'Bearer realm="kiseki", error="insufficient_scope"'
    assert await nothing_written(world)
    hidden = """mutation { ...F }
        fragment F on Mutation { deleteUserAccount(input: {userAccountId: "x"}) @skip(if: true) { id } }"""
    assert (await api.post(hidden, principal=STRANGER))[0] == 403
    assert (await api.post("{ health }", principal=STRANGER))[1]["data"] == {"health": "ok"}


async def test_a_user_changes_their_own_account_only(api: Api, world: World) -> None:
    account = (await api.post(CREATE, {"input": TARO}, principal=USER))[1]["data"]["createUserAccount"]["id"]
    head = await world.journal.head()
    for operation, given in (("renameUserAccount", {"firstName": "a", "lastName": "b"}), ("deleteUserAccount", {})):
        kind = operation[0].upper() + operation[1:] + "Input"
        query = f"mutation ($input: {kind}!) {{ {operation}(input: $input) {{ id }} }}"
        for other in (account, "01J00000000000000000000000"):
            # Whether there is such an account is not told.
            status, body, _ = await api.post(query, {"input": {"userAccountId": other, **given}}, principal=USER)
            assert (status, body["data"]) == (200, {operation: None})
            (error,) = body["errors"]
            assert error["extensions"]["code"] == "FORBIDDEN"
            assert error["extensions"]["type"] == "CommandError"
            assert account not in error["message"]
            event = api.audited.events[-1]
            assert (event.kind, event.operation, event.code) == ("access.denied", operation, "NOT_OWN")
            assert (event.subject, event.actor, event.api) == ("alice", "pseudonym", "command")
    assert await world.journal.head() == head
    own = msgspec.structs.replace(USER, user_id=account)
    for principal in (own, ADMIN):
        given = {"userAccountId": account, "firstName": principal.subject, "lastName": "b"}
        assert (await api.post(RENAME, {"input": given}, principal=principal))[1]["data"]["renameUserAccount"]
    done = [event for event in api.audited.events if event.outcome == "done"]
    # One's own is nobody's business; what an administrator does is.
    assert [(event.kind, event.subject, event.target) for event in done] == [
        ("admin.renameUserAccount", "root", account)
    ]


async def test_what_can_not_be_recorded_an_administrator_can_not_do(api: Api, world: World) -> None:
    account = (await api.post(CREATE, {"input": TARO}, principal=USER))[1]["data"]["createUserAccount"]["id"]
    api.audited.problem = AuditUnavailable("the disk of the audit log is full")
    head = await world.journal.head()
    given = {"userAccountId": account, "firstName": "x", "lastName": "y"}
    status, body, headers = await api.post(RENAME, {"input": given}, principal=ADMIN)
    assert (status, body["errors"][0]["extensions"]["code"]) == (503, "AUDIT_UNAVAILABLE")
    assert b"retry-after" in headers
    assert await world.journal.head() == head
    own = msgspec.structs.replace(USER, user_id=account)
    assert (await api.post(RENAME, {"input": given}, principal=own))[0] == 200


async def test_what_a_role_does_not_allow_is_recorded(api: Api) -> None:
    query = f"mutation {{ createUserAccount(input: {as_literal(TARO)}) {{ id }} }}"
    await api.post(query, principal=STRANGER, address="192.0.2.7")
    (event,) = api.audited.events
    assert (event.kind, event.outcome, event.code) == ("access.denied", "refused", "ROLES")
    assert (event.operation, event.address, event.trace_id) == ("createUserAccount", "192.0.2.7", "t" * 32)


async def test_a_document_pays_for_what_it_asks(api: Api, world: World) -> None:
    charged: list[int] = []

    async def charge(units: int) -> Answer | None:
        charged.append(units)
        return None if sum(charged) <= 3 else Answer(429, (), b"{}")

    fields = " ".join(f"f{n}: createUserAccount(input: {as_literal(TARO)}) {{ id }}" for n in range(4))
    assert (await api.post(f"mutation {{ {fields} }}", charge=charge))[0] == 200
    head = await world.journal.head()
    answer = await api.send(json.dumps({"query": f"mutation {{ {fields} }}"}).encode(), charge=charge)
    assert (answer.status, charged) == (429, [3, 3])
    assert await world.journal.head() == head
    await api.post(CREATE, {"input": TARO}, charge=charge)
    assert charged == [3, 3]


async def test_idempotency_keys(api: Api, world: World) -> None:
    first = await api.post(CREATE, {"input": TARO}, idempotency_key="k-1")
    again = await api.post(CREATE, {"input": TARO}, idempotency_key="k-1")
    assert first[1] == again[1]
    status, body, _ = await api.post(CREATE, {"input": {**TARO, "lastName": "x"}}, idempotency_key="k-1")
    assert (status, body["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    create = f"createUserAccount(input: {as_literal(TARO)}) {{ id }}"
    two = f"mutation {{ a: {create} b: {create} }}"
    assert (await api.post(two, idempotency_key="k-2"))[1]["code"] == "IDEMPOTENCY_KEY_SEVERAL_FIELDS"
    for key in ("", "a b", "x" * 256, "é", "a\nb"):
        assert (await api.post(CREATE, {"input": TARO}, idempotency_key=key))[0] == 400
    assert len((await world.journal.feed(START)).commits) == 1


async def test_a_key_in_flight_is_409(api: Api, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    append = world.journal.append
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def slow(*arguments: Any, **options: Any) -> Any:
        entered.set()
        await go_on.wait()
        return await append(*arguments, **options)

    monkeypatch.setattr(world.journal, "append", slow)
    first = asyncio.create_task(api.post(CREATE, {"input": TARO}, idempotency_key="k"))
    await entered.wait()
    status, body, headers = await api.post(CREATE, {"input": TARO}, idempotency_key="k")
    assert (status, body["code"], headers[b"retry-after"]) == (409, "IDEMPOTENCY_KEY_IN_FLIGHT", b"1")
    go_on.set()
    assert (await first)[0] == 200


async def test_a_store_that_is_away_is_503_and_what_was_sent_later_works(
    api: Api, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any, **__: Any) -> Any:
        raise JournalUnavailable("/var/lib/kiseki/journal.db: the disk is full", retry_after=3)

    with monkeypatch.context() as patched:
        patched.setattr(world.journal, "append", away)
        status, body, headers = await api.post(CREATE, {"input": TARO})
    assert (status, headers[b"retry-after"]) == (503, b"3")
    assert body["errors"][0]["extensions"]["code"] == "UNAVAILABLE"
    assert "/var" not in json.dumps(body)
    assert (await api.post(CREATE, {"input": TARO}))[0] == 200


async def test_what_fails_inside_says_nothing_about_the_inside(
    api: Api, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("SELECT secret FROM /var/lib")

    monkeypatch.setattr(world.journal, "append", broken)
    status, body, _ = await api.post(CREATE, {"input": TARO})
    assert status == 200
    assert body["errors"][0]["extensions"]["code"] == "INTERNAL"
    assert not any(word in json.dumps(body) for word in ("SELECT", "secret", "/var", "RuntimeError"))


async def test_an_unreadable_token_is_400(api: Api) -> None:
    for token in ("", "x", "v1.!!!", "v1." + "A" * 9_000):
        status, body, _ = await api.post("{ health }", consistency_token=token)
        assert (status, body["code"]) == (400, "INVALID_TOKEN")


def as_literal(value: dict[str, str]) -> str:
    return "{" + ", ".join(f"{key}: {json.dumps(item, ensure_ascii=False)}" for key, item in value.items()) + "}"


def test_the_schema_has_no_suggestion_of_what_it_is_made_of() -> None:
    assert "kiseki" not in print_schema(command_schema(app))
