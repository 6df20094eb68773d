"""What the DynamoDB client makes of throttling, silence, broken connections and broken answers."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
from aiohttp import web

from kiseki.clients.dynamodb import (
    CancellationReason,
    ConditionFailed,
    DynamoDbAddress,
    DynamoDbClient,
    DynamoDbRefused,
    DynamoDbUnavailable,
    TransactionCanceled,
)
from tests.integration.clients.fake_dynamodb import (
    OK,
    Answer,
    FakeDynamoDb,
    damaged,
    error,
    half,
    not_json,
    ok,
    reset,
    silence,
)

PUT = {"TableName": "k-journal", "Item": {"persistence-id": {"S": "User-secret"}}}
GET = {"TableName": "k-journal", "Key": {"persistence-id": {"S": "User-secret"}}}
TRANSACTION = {"TransactItems": [{"Put": PUT}, {"Delete": {"TableName": "k-claims", "Key": {"key": {"S": "secret"}}}}]}

Connect = Callable[..., DynamoDbClient]

pytestmark = pytest.mark.usefixtures("aws_keys")


@pytest.fixture
async def connect(fake: FakeDynamoDb) -> AsyncIterator[Connect]:
    """Makes clients of the fake server, or of another endpoint."""
    clients: list[DynamoDbClient] = []

    def connect_one(endpoint: str | None = None, **settings: Any) -> DynamoDbClient:
        address = DynamoDbAddress(prefix="k", region="eu-west-1", endpoint=endpoint or fake.endpoint)
        clients.append(DynamoDbClient(address, **settings))
        return clients[-1]

    yield connect_one
    for client in clients:
        await client.close()


def canceled(*codes: str, **item: Any) -> Answer:
    reasons = [{"Code": code, **({"Item": item} if code == "ConditionalCheckFailed" else {})} for code in codes]
    return error("TransactionCanceledException", CancellationReasons=reasons)


async def test_requests_are_dynamodbs_json(fake: FakeDynamoDb, connect: Connect) -> None:
    fake.answers = [ok({"Item": {"document": {"B": "AAEC"}}}), OK]
    client = connect()
    assert await client.call("GetItem", GET) == {"Item": {"document": {"B": "AAEC"}}}
    await client.call_streams("GetRecords", {"ShardIterator": "x"})
    assert fake.requests == [
        ("DynamoDB_20120810.GetItem", GET),
        ("DynamoDBStreams_20120810.GetRecords", {"ShardIterator": "x"}),
    ]
    (headers, _) = fake.headers
    assert headers["Content-Type"] == "application/x-amz-json-1.0"
    assert "x-amz-security-token" not in headers
    assert headers["Host"] == fake.endpoint.removeprefix("http://")


async def test_session_credentials_are_sent(
    fake: FakeDynamoDb, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "the token")
    await connect().call("GetItem", GET)
    assert fake.headers[0]["X-Amz-Security-Token"] == "the token"
    assert (
        "SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-amz-target"
        in (fake.headers[0]["Authorization"])
    )


PASSING: Mapping[str, Answer] = {
    "throughput": error("ProvisionedThroughputExceededException"),
    "throttled": error("ThrottlingException"),
    "limit": error("RequestLimitExceeded"),
    "internal": error("InternalServerError", 500),
    "unavailable": error("ServiceUnavailable", 503),
    "conflict": error("TransactionConflictException"),
    "in progress": error("TransactionInProgressException"),
    "canceled by a conflict": canceled("TransactionConflict", "None"),
    "canceled by throttling": canceled("None", "ThrottlingError"),
    "canceled by both": canceled("ProvisionedThroughputExceeded", "TransactionConflict"),
    "damaged": damaged,
    "no json": not_json(200),
    "half": half,
    "reset": reset,
    "silence": silence,
}


@pytest.mark.parametrize("passing", PASSING)
async def test_what_may_pass_is_tried_again(fake: FakeDynamoDb, connect: Connect, passing: str) -> None:
    fake.answers = [PASSING[passing], PASSING[passing], ok({"Item": {"a": {"S": "b"}}})]
    assert await connect(attempt_timeout=0.2).call("PutItem", PUT) == {"Item": {"a": {"S": "b"}}}
    assert fake.requests == [("DynamoDB_20120810.PutItem", PUT)] * 3


@pytest.mark.parametrize(
    ("passing", "words"),
    [
        ("throttled", "ThrottlingException"),
        ("internal", "InternalServerError"),
        ("canceled by a conflict", "TransactionConflict"),
        ("damaged", "damaged"),
        ("silence", "no answer in"),
        ("reset", "the connection failed"),
    ],
)
async def test_what_does_not_pass_ends_at_the_deadline(
    fake: FakeDynamoDb, connect: Connect, passing: str, words: str
) -> None:
    fake.afterwards = PASSING[passing]
    client = connect(attempt_timeout=0.1)
    client._tables.circuit._failures = 1_000
    await client._credentials.keys()  # they take their time once
    async with asyncio.timeout(10.0):  # far above the deadline
        with pytest.raises(DynamoDbUnavailable) as caught:
            await client.call("TransactWriteItems", TRANSACTION, deadline=1.0)
    assert len(fake.requests) > 1
    assert words in str(caught.value)
    assert str(caught.value).startswith("TransactWriteItems on k-claims, k-journal: ")
    assert "secret" not in str(caught.value)


async def test_the_last_reason_that_says_something_is_told(fake: FakeDynamoDb, connect: Connect) -> None:
    fake.answers = [error("ThrottlingException")]
    fake.afterwards = silence
    client = connect(attempt_timeout=30.0)
    await client._credentials.keys()
    with pytest.raises(DynamoDbUnavailable, match="ThrottlingException"):
        await client.call("GetItem", GET, deadline=1.0)
    assert len(fake.requests) == 2


async def test_attempts_are_bounded(fake: FakeDynamoDb, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kiseki.clients.dynamodb._LONGEST_PAUSE", 0.0)
    fake.afterwards = error("ThrottlingException")
    with pytest.raises(DynamoDbUnavailable):
        await connect(deadline=60.0).call("GetItem", GET)
    assert len(fake.requests) == 10


@pytest.mark.parametrize(
    "kind",
    [
        "ValidationException",
        "ResourceNotFoundException",
        "AccessDeniedException",
        "IdempotentParameterMismatchException",
    ],
)
async def test_a_refusal_is_not_tried_again(fake: FakeDynamoDb, connect: Connect, kind: str) -> None:
    fake.answers = [error(kind)]
    with pytest.raises(DynamoDbRefused) as caught:
        await connect().call("PutItem", PUT)
    assert caught.value.kind == kind
    assert caught.value.detail == "some words, perhaps with a value"
    assert str(caught.value).startswith(f"PutItem on k-journal: {kind}: ")
    assert "value" not in str(caught.value)
    assert len(fake.requests) == 1


async def test_a_page_of_a_proxy_is_a_refusal(fake: FakeDynamoDb, connect: Connect) -> None:
    fake.answers = [not_json(403)]
    with pytest.raises(DynamoDbRefused) as caught:
        await connect().call("PutItem", PUT)
    assert caught.value.kind == "HTTP 403"


async def test_a_condition_that_fails_gives_the_item_that_is_there(fake: FakeDynamoDb, connect: Connect) -> None:
    fake.answers = [
        error("ConditionalCheckFailedException", Item={"a": {"S": "b"}}),
        error("ConditionalCheckFailedException"),
    ]
    client = connect()
    for item in ({"a": {"S": "b"}}, None):
        with pytest.raises(ConditionFailed) as caught:
            await client.call("PutItem", PUT)
        assert caught.value.item == item
        assert "secret" not in str(caught.value)
    assert len(fake.requests) == 2


async def test_reasons_of_a_canceled_transaction_come_in_order(fake: FakeDynamoDb, connect: Connect) -> None:
    fake.answers = [canceled("TransactionConflict", "ConditionalCheckFailed", "None", a={"S": "secret"})]
    with pytest.raises(TransactionCanceled) as caught:
        await connect().call("TransactWriteItems", TRANSACTION)
    assert caught.value.reasons == (
        CancellationReason("TransactionConflict"),
        CancellationReason("ConditionalCheckFailed", {"a": {"S": "secret"}}),
        CancellationReason("None"),
    )
    assert "secret" not in f"{caught.value} {caught.value.reasons}"
    assert len(fake.requests) == 1


async def test_no_more_requests_run_than_connections(fake: FakeDynamoDb, connect: Connect) -> None:
    three = asyncio.Event()

    async def with_others(_: web.BaseRequest) -> web.Response:
        if fake.at_once == 3:
            three.set()
        await three.wait()
        return web.json_response({})

    fake.afterwards = with_others
    client = connect(connections=3)
    await asyncio.gather(*(client.call("GetItem", GET) for _ in range(50)))
    assert fake.most_at_once == 3
    assert len(fake.requests) == 50


async def test_who_gets_no_connection_in_time_is_told_so(fake: FakeDynamoDb, connect: Connect) -> None:
    fake.afterwards = silence
    client = connect(connections=1, attempt_timeout=30.0, deadline=30.0)
    holder = asyncio.create_task(client.call("GetItem", GET))
    await fake.arrived.wait()
    with pytest.raises(DynamoDbUnavailable, match="no connection was free, 1 are in use"):
        await client.call("GetItem", GET, deadline=0.05)
    fake.afterwards = OK
    holder.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holder
    assert await client.call("GetItem", GET) == {}, "the cancelled one left its place"


async def problem_of(client: DynamoDbClient) -> DynamoDbUnavailable | None:
    try:
        await client.call("GetItem", GET)
    except DynamoDbUnavailable as problem:
        return problem
    return None


async def test_while_the_server_is_gone_calls_fail_at_once_and_after_it_they_go(
    connect: Connect, fake: FakeDynamoDb, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        client = connect(f"http://127.0.0.1:{taken.getsockname()[1]}", deadline=0.1)
        await client._credentials.keys()
        with pytest.raises(DynamoDbUnavailable, match="onnection refused"):
            await client.call("GetItem", GET, deadline=1.0)
        problem = None
        with caplog.at_level(logging.WARNING):
            while "left alone" not in str(problem):
                problem = await problem_of(client)
        assert problem is not None
        assert problem.retry_after == 1
        assert caplog.messages[-1].endswith("does not answer; calls fail at once until one gets through")
    client._tables.url = f"{fake.endpoint}/"  # it comes to life
    while problem is not None:
        assert "left alone" in str(problem)
        await asyncio.sleep(0.02)  # for a second at most; the test's own time limit ends it otherwise
        problem = await problem_of(client)
    assert len(fake.requests) == 1
    assert await asyncio.gather(*(problem_of(client) for _ in range(10))) == [None] * 10


async def test_when_the_call_that_tries_is_cancelled_another_tries(connect: Connect, fake: FakeDynamoDb) -> None:
    fake.answers = [silence]
    client = connect()
    client._tables.circuit._open_until = time.monotonic()  # the pause is over
    call = asyncio.create_task(client.call("GetItem", GET))
    await fake.arrived.wait()
    assert "left alone" in str(await problem_of(client))
    call.cancel()
    await asyncio.wait([call])
    assert await client.call("GetItem", GET) == {}


async def test_who_has_little_time_does_not_stop_calls_of_others(connect: Connect, fake: FakeDynamoDb) -> None:
    client = connect(attempt_timeout=2.0)
    await client._credentials.keys()
    fake.afterwards = silence
    client._tables.circuit._window = 0.0
    for _ in range(10):
        with pytest.raises(DynamoDbUnavailable, match="no answer in"):
            await client.call("GetItem", GET, deadline=0.01)
    fake.afterwards = OK
    assert await client.call("GetItem", GET) == {}


async def test_streams_may_be_gone_alone(connect: Connect, fake: FakeDynamoDb) -> None:
    client = connect()
    client._streams.circuit._open_until = time.monotonic() + 1_000.0
    with pytest.raises(DynamoDbUnavailable, match="left alone"):
        await client.call_streams("GetRecords", {})
    assert await client.call("GetItem", GET) == {}


async def test_throttling_does_not_stop_calls(fake: FakeDynamoDb, connect: Connect) -> None:
    fake.afterwards = error("ThrottlingException")
    client = connect(deadline=1.0)
    results = await asyncio.gather(*(client.call("GetItem", GET) for _ in range(20)), return_exceptions=True)
    assert {type(result) for result in results} == {DynamoDbUnavailable}
    assert not [result for result in results if "left alone" in str(result)]
    fake.afterwards = OK
    assert await client.call("GetItem", GET) == {}


async def test_refused_credentials_are_looked_for_once_more(
    fake: FakeDynamoDb, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.answers = [OK, error("ExpiredTokenException"), OK]
    client = connect()
    await client.call("GetItem", GET)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "renewed")
    client._credentials._ask_at = 0.0  # as if the last look were long ago
    await client.call("GetItem", GET)
    used = [headers["Authorization"].partition("Credential=")[2].partition("/")[0] for headers in fake.headers]
    assert used == ["test", "test", "renewed"]


async def test_credentials_that_stay_refused_fail_soon(fake: FakeDynamoDb, connect: Connect) -> None:
    fake.afterwards = error("UnrecognizedClientException")
    with pytest.raises(DynamoDbUnavailable, match=r"the credentials are refused \(UnrecognizedClientException\)"):
        await connect().call("GetItem", GET)
    assert len(fake.requests) == 2


async def test_a_closed_client_says_so(fake: FakeDynamoDb, connect: Connect) -> None:
    client = connect()
    await client.call("GetItem", GET)
    await client.close()
    await client.close()
    with pytest.raises(DynamoDbUnavailable, match="is closed"):
        await client.call("GetItem", GET)
    assert len(fake.requests) == 1


async def test_closing_ends_calls_that_run(fake: FakeDynamoDb, connect: Connect) -> None:
    fake.afterwards = silence
    client = connect(attempt_timeout=30.0, deadline=30.0)
    call = asyncio.create_task(client.call("GetItem", GET))
    await fake.arrived.wait()
    await client.close()
    with pytest.raises(DynamoDbUnavailable):
        await call
