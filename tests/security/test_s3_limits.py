"""S3, how often: at most N in any 60 seconds of an address before its token is looked at, and of a subject after; what a
document costs counts, not only requests; who a client is comes from its connection, and from a header only when a proxy
says so; two processes share one limit through Redis; a flood is a line or two of the audit log."""

# ruff: noqa: E501  # a document is one line

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e.client import Reply
from tests.security.attacks import CREATE, PERSON
from tests.servers.production import Production
from tests.servers.redis import NoRedis, RedisServer

ANYTHING: Final = "{ __typename }"
LIMIT: Final = 20
ADDRESS_LIMIT: Final = 40


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    """Behind a proxy that is trusted, so that a test may be any client."""
    folder = tmp_path_factory.mktemp("limited")
    with Production(
        folder, RATE_LIMIT=LIMIT, RATE_LIMIT_ADDRESS=ADDRESS_LIMIT, TRUSTED_PROXIES="127.0.0.1/32"
    ) as service:
        yield service


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    """Without a proxy: everybody here has one address."""
    folder = tmp_path_factory.mktemp("direct")
    with Production(
        folder, RATE_LIMIT=1_000, RATE_LIMIT_ADDRESS=ADDRESS_LIMIT, TRUSTED_PROXIES="10.0.0.0/8"
    ) as service:
        yield service


async def spent(
    service: Production,
    times: int,
    *,
    token: Callable[[int], str | None],
    headers: Callable[[int], dict[str, str]],
    api: str = "query",
) -> list[Reply]:
    """So many requests, one after the other on one connection."""
    replies = []
    async with asyncio.timeout(60), service.client(api) as client:
        for number in range(times):
            given = token(number)
            bearer = {} if given is None else {"authorization": f"Bearer {given}"}
            replies.append(await client.graphql(ANYTHING, **bearer, **headers(number)))
    return replies


def statuses(replies: list[Reply]) -> Counter[int]:
    return Counter(reply.status for reply in replies)


def is_limited(reply: Reply, policy: str, limit: int) -> None:
    """429 as the wire contract has it."""
    assert reply.status == 429, reply.body
    assert 1 <= int(reply.headers["retry-after"]) <= 61
    assert reply.headers["ratelimit-policy"] == f'"{policy}";q={limit};w=60'
    assert re.fullmatch(rf'"{policy}";r=\d+;t=\d+', reply.headers["ratelimit"])
    assert reply.headers["content-type"] == "application/problem+json"
    body = reply.json()
    assert (body["status"], body["code"]) == (429, "RATE_LIMITED")
    assert {"type", "title", "detail", "traceId"} <= body.keys()
    assert "www-authenticate" not in reply.headers


def from_address(address: str) -> Callable[[int], dict[str, str]]:
    return lambda _: {"x-forwarded-for": address}


async def test_a_subject_has_so_many_in_a_minute_from_wherever_it_asks(behind: Production) -> None:
    token = behind.tokens.user("busy")
    replies = await spent(
        behind, LIMIT + 5, token=lambda _: token, headers=lambda n: {"x-forwarded-for": f"198.51.100.{n}"}
    )
    assert [reply.status for reply in replies] == [200] * LIMIT + [429] * 5
    left = [int(reply.headers["ratelimit"].split("r=")[1].split(";")[0]) for reply in replies[:LIMIT]]
    assert left == list(range(LIMIT - 1, -1, -1))
    for reply in replies[LIMIT:]:
        is_limited(reply, "subject", LIMIT)
    # Another token of theirs, another algorithm, the other API and the admin page are theirs too; others are others.
    again = behind.tokens.made(behind.tokens.claims("busy", "admin"), "HS256")
    for door in (
        behind.graphql("command", ANYTHING, token=again),
        behind.graphql("query", ANYTHING, token=again),
        behind.get("/api/admin/users", token=again),
        behind.get("/api/graphql/schema", token=again),
    ):
        is_limited(await door, "subject", LIMIT)
    assert (await behind.graphql("query", ANYTHING, token=behind.tokens.user("idle"))).status == 200


async def test_all_at_once_are_not_more(behind: Production) -> None:
    token = behind.tokens.user("eager")
    replies = await asyncio.gather(
        *(
            behind.graphql(api, ANYTHING, token=token, **{"x-forwarded-for": f"203.0.113.{number}"})
            for number in range(LIMIT + 5)
            for api in ("command", "query")
        )
    )
    assert statuses(list(replies)) == {200: LIMIT, 429: LIMIT + 10}


async def test_it_stays_refused_for_a_minute_and_is_told_so(behind: Production) -> None:
    """The first request counts for a minute, not until some minute of the clock begins."""
    token = behind.tokens.user("patient")
    started = time.monotonic()
    await spent(behind, LIMIT, token=lambda _: token, headers=lambda n: {"x-forwarded-for": f"192.0.2.{n}"})
    waits = []
    while time.monotonic() - started < 3.5:
        reply = await behind.graphql("query", ANYTHING, token=token, **{"x-forwarded-for": "192.0.2.200"})
        is_limited(reply, "subject", LIMIT)
        waits.append((time.monotonic() - started, int(reply.headers["retry-after"])))
        await asyncio.sleep(0.5)
    for elapsed, wait in waits:
        assert 60 <= elapsed + wait <= 63


async def test_an_address_is_limited_before_its_token_is_looked_at(behind: Production) -> None:
    """Guessing tokens is limited, and beyond the limit a good one is refused as well, unseen."""
    replies = await spent(behind, ADDRESS_LIMIT + 5, token=lambda n: f"a.b.{n}", headers=from_address("198.51.100.200"))
    assert [reply.status for reply in replies] == [401] * ADDRESS_LIMIT + [429] * 5
    is_limited(replies[-1], "address", ADDRESS_LIMIT)
    for token in (behind.tokens.admin("innocent"), "a.b.c", None):
        reply = await behind.graphql(
            "command", CREATE, {"input": PERSON}, token=token, **from_address("198.51.100.200")(0)
        )
        is_limited(reply, "address", ADDRESS_LIMIT)
    # Malformed headers and no token at all count as well.
    replies = await spent(behind, ADDRESS_LIMIT, token=lambda _: None, headers=from_address("198.51.100.201"))
    assert statuses(replies) == {401: ADDRESS_LIMIT}
    assert (await behind.graphql("query", ANYTHING, **from_address("198.51.100.201")(0))).status == 429
    assert (
        await behind.graphql(
            "query", ANYTHING, token=behind.tokens.user("next-door"), **from_address("198.51.100.202")(0)
        )
    ).status == 200


async def cost(service: Production, document: str, variables: Any = None, *, api: str = "query", name: str) -> int:
    """What a document costs a fresh subject, seen by what is left after it and one more."""
    token = service.tokens.admin(name)
    headers = {"x-forwarded-for": f"2001:db8:{abs(hash(name)) % 65_535:x}::1"}
    reply = await service.graphql(api, document, variables, token=token, **headers)
    assert reply.status in (200, 429), reply.body
    if reply.status == 429:
        is_limited(reply, "subject", LIMIT)
        return LIMIT + 1
    probe = await service.graphql("query", ANYTHING, token=token, **headers)
    return LIMIT - 1 - int(probe.headers["ratelimit"].split("r=")[1].split(";")[0])


COSTS: Final = (
    ("one field", ANYTHING, None, 1),
    ("three aliases", "{ a: __typename b: __typename c: __typename }", None, 3),
    ("aliases in a fragment", "{ ...f } fragment f on Query { a: __typename b: __typename }", None, 2),
    ("aliases in inline fragments", "{ ... { a: __typename } ... on Query { b: __typename ... { c: __typename } } }", None, 3),
    ("a page of a hundred", "{ getUserAccounts(first: 100) { id } }", None, 1),
    ("a page of a hundred and one", "{ getUserAccounts(first: 101) { id } }", None, 2),
    ("a page of a thousand", "{ getUserAccounts(first: 1000) { id } }", None, 10),
    ("a page by a variable", "query ($n: Int!) { getUserAccounts(first: $n) { id } }", {"n": 1000}, 10),
    ("two pages", "{ a: getUserAccounts(first: 300) { id } b: getUserAccounts(first: 500) { id } }", None, 8),
    ("more than there is", "{ a: getUserAccounts(first: 1000) { id } b: getUserAccounts(first: 1000) { id } c: __typename }", None, LIMIT + 1),
    ("ids by a variable", "query ($i: [String!]!) { getUserAccountsByIds(userAccountIds: $i) { id } }", {"i": ["x"] * 250}, 3),
)  # fmt: skip


@pytest.mark.parametrize(("name", "document", "variables", "units"), COSTS, ids=[name for name, *_ in COSTS])
async def test_what_a_document_costs(behind: Production, name: str, document: str, variables: Any, units: int) -> None:
    assert await cost(behind, document, variables, name=name) == units


async def test_what_is_too_dear_does_not_run_at_all(behind: Production) -> None:
    token = behind.tokens.admin("rich")
    await spent(behind, LIMIT - 3, token=lambda _: token, headers=from_address("198.51.100.230"))
    several = "mutation {" + " ".join(
        f'm{n}: createUserAccount(input: {{firstName: "A", lastName: "B", emailAddress: "a@example.com"}}) {{ id }}' for n in range(5)
    ) + "}"  # fmt: skip
    before = behind.commits()
    is_limited(
        await behind.graphql("command", several, token=token, **from_address("198.51.100.230")(0)), "subject", LIMIT
    )
    assert behind.commits() == before


async def test_the_admin_page_costs_by_its_size(behind: Production) -> None:
    token = behind.tokens.admin("lister")
    first = await behind.get("/api/admin/users?first=1000", token=token)
    second = await behind.get("/api/admin/users?first=1000", token=token)
    assert (first.status, second.status) == (200, 200)
    is_limited(await behind.get("/api/admin/users?first=1", token=token), "subject", LIMIT)


async def test_a_proxy_that_is_trusted_says_who_the_client_is(behind: Production) -> None:
    async def admitted(count: int, written: Callable[[int], str], **more: str) -> int:
        replies = await spent(
            behind, count, token=lambda _: None, headers=lambda n: {"x-forwarded-for": written(n), **more}
        )
        return statuses(replies)[401]

    # What a client wrote itself stands left of what the proxy added: it changes nothing.
    over = ADDRESS_LIMIT + 3
    assert await admitted(over, lambda n: f"10.9.8.{n}, 198.51.100.240") == ADDRESS_LIMIT
    assert await admitted(3, lambda n: f"198.51.100.{n}, 127.0.0.1, 198.51.100.240") == 0
    assert await admitted(3, lambda n: f"{'1.2.3.4, ' * n}198.51.100.240, 127.0.0.1") == 0
    others = {
        "x-real-ip": "9.9.9.9",
        "true-client-ip": "9.9.9.9",
        "cf-connecting-ip": "9.9.9.9",
        "forwarded": "for=9.9.9.9",
    }
    assert await admitted(3, lambda _: "198.51.100.240", **others) == 0
    # One IPv6 customer has a /64 full of addresses.
    assert await admitted(over, lambda n: f"2001:db8:77:1::{n:x}") == ADDRESS_LIMIT
    assert await admitted(3, lambda n: f"2001:0DB8:0077:0001:ffff:{n}::") == 0
    assert await admitted(3, lambda n: f"2001:db8:77:2::{n}") == 3
    # IPv4 in IPv6 is the same client.
    assert await admitted(3, lambda n: "::ffff:198.51.100.240") == 0


async def test_a_header_of_an_untrusted_peer_changes_nothing(direct: Production) -> None:
    names = ("x-forwarded-for", "forwarded", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip", "via")
    replies = await spent(
        direct,
        ADDRESS_LIMIT + 10,
        token=lambda _: None,
        headers=lambda n: {name: f"for=198.51.100.{n}" if name == "forwarded" else f"198.51.100.{n}" for name in names},
    )
    assert [reply.status for reply in replies] == [401] * ADDRESS_LIMIT + [429] * 10
    record = await direct.recorded(lambda one: one["kind"] == "limit.hit")
    assert record["address"] == "127.0.0.1"


async def test_health_is_not_limited(direct: Production) -> None:
    async with direct.client("query") as client:
        for _ in range(ADDRESS_LIMIT + 5):
            assert (await client.request("GET", "/api/health")).status == 200


async def test_a_flood_is_two_lines_of_the_audit_log(behind: Production) -> None:
    token = behind.tokens.user("flood")
    replies = await spent(behind, LIMIT, token=lambda _: token, headers=from_address("198.51.100.250"))
    replies += await spent(behind, 15, token=lambda _: token, headers=from_address("198.51.100.250"))
    assert statuses(replies) == {200: LIMIT, 429: 15}
    first = await behind.recorded(lambda one: one["kind"] == "limit.hit" and one.get("subject") == "flood")
    assert (first["outcome"], first["code"], first["target"], first["address"]) == (
        "refused",
        "RATE_LIMITED",
        "subject",
        "198.51.100.250",
    )
    assert first.get("count", 1) == 1
    rest = await behind.recorded(
        lambda one: one["kind"] == "limit.hit" and one.get("subject") == "flood" and one.get("count", 1) > 1, seconds=20
    )
    assert rest["count"] == 14
    assert len([one for one in behind.records() if one["kind"] == "limit.hit" and one.get("subject") == "flood"]) == 2


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    try:
        with RedisServer() as server:
            yield server
    except NoRedis as problem:
        pytest.skip(f"Redis tests need a server: {problem}")


async def test_two_processes_share_one_limit_through_redis(redis: RedisServer, tmp_path: Path) -> None:
    """And each goes on by itself, with its part of the limit, when Redis is gone, which is recorded."""
    url = tmp_path / "redis-url"
    url.write_text(redis.url)
    url.chmod(0o600)
    service = Production(
        tmp_path / "p", workers=2, RATE_LIMIT=LIMIT, RATE_LIMIT_ADDRESS=10_000, RATE_STORE=f"file://{url}"
    )
    service.service.start()
    try:
        await service.service.ready()

        async def asked(subject: str) -> int:
            return (await service.graphql("query", ANYTHING, token=service.tokens.user(subject))).status

        def refused_by(since: int) -> set[str]:
            lines = [json.loads(line) for line in service.log()[since:].splitlines()]
            return {line["role"] for line in lines if line["message"] == "answered 429"}

        # Two processes do answer: each in its turn says that somebody else's limit is reached.
        begin = len(service.log())
        allowed, asks = 0, 0
        async with asyncio.timeout(30):
            while refused_by(begin) != {"worker-1", "worker-2"}:
                allowed += await asked("shared") == 200
                asks += 1
        assert asks > LIMIT
        slow = [one for one in service.records() if one["kind"] == "limit.shared_unavailable"]
        # On a machine that is so busy that Redis took 50 ms, a process may have used its own part in between.
        assert allowed == LIMIT or (slow and allowed <= LIMIT + LIMIT // 2)
        with redis.client() as held:
            keys = list(held.scan_iter())
            assert keys
            assert not [key for key in keys if b"shared" in key or b"127.0.0.1" in key]
            assert all(0 < int(held.ttl(key)) <= 62 for key in keys)
        redis.halt()
        begin = len(service.log())
        alone = 0
        async with asyncio.timeout(30):
            while refused_by(begin) != {"worker-1", "worker-2"}:
                alone += await asked("alone") == 200
        assert alone == LIMIT
        record = await service.recorded(
            lambda one: one["kind"] == "limit.shared_unavailable" and one["code"] == "UNREACHABLE"
        )
        assert redis.password not in json.dumps(service.records()) + service.log()
        assert record["outcome"] == "failed"
    finally:
        service.kill()


def test_several_processes_without_a_shared_store_are_no_production(tmp_path: Path) -> None:
    service = Production(tmp_path, workers=2)
    done = service.kiseki("check", "--deploy", "--json")
    assert [finding["name"] for finding in json.loads(done.stdout)] == ["rate_store"]
    done = service.kiseki("serve")
    assert done.returncode != 0
    assert "rate_store" in done.stderr
