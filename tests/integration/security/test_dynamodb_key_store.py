"""The key store on DynamoDB: crashes in the middle of an erasure, lost answers, partial reads, damage."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import pytest

from kiseki.clients.dynamodb import DynamoDbAddress, DynamoDbClient, DynamoDbUnavailable
from kiseki.clients.dynamodb_tables import check_tables
from kiseki.kernel.errors import KisekiError
from kiseki.security.dynamodb_key_items import KEYS_TABLE
from kiseki.security.dynamodb_key_store import DynamoDbKeyStore
from kiseki.security.key_store import Erasures, KeyStoreCorrupt, KeyStoreUnavailable, Rewrapped, SubjectKeys, WrappedKey
from tests.integration.security.key_parts import GONE, NOW, attempts, key

Request: TypeAlias = Mapping[str, Any]
Go: TypeAlias = Callable[[], Awaitable[dict[str, Any]]]
Around: TypeAlias = Callable[[str, Request, Go], Awaitable[dict[str, Any]]]


class Meddled(DynamoDbClient):
    """A client with something around its calls."""

    around: Around | None = None

    async def call(self, operation: str, request: Request, *, deadline: float | None = None) -> dict[str, Any]:
        if self.around is None:
            return await super().call(operation, request, deadline=deadline)
        return await self.around(
            operation, request, lambda: DynamoDbClient.call(self, operation, request, deadline=deadline)
        )


class Stores:
    """Stores on one table, each as of a process of its own."""

    def __init__(self, address: DynamoDbAddress) -> None:
        self.address = address
        self.opened: list[DynamoDbKeyStore] = []

    def open(self, around: Around | None = None) -> DynamoDbKeyStore:
        client = Meddled(self.address)
        client.around = around
        self.opened.append(DynamoDbKeyStore(client))
        return self.opened[-1]


@pytest.fixture
async def unmade(dynamodb_address: DynamoDbAddress) -> AsyncIterator[Stores]:
    stores = Stores(dynamodb_address)
    yield stores
    for store in stores.opened:
        await store.close()


@pytest.fixture
async def stores(unmade: Stores) -> Stores:
    await DynamoDbKeyStore.migrate(unmade.address)
    return unmade


class Dies:
    """Around calls: lets so many through and then none, as if the process had died; `after` the last one was done, or
    before it."""

    def __init__(self, calls: int, *, after: bool) -> None:
        self.left = calls
        self.after = after

    async def __call__(self, operation: str, request: Request, go: Go) -> dict[str, Any]:
        self.left -= 1
        if self.left > 0 or (self.left == 0 and self.after):
            answer = await go()
            if self.left > 0:
                return answer
        raise DynamoDbUnavailable("died")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("calls", range(1, 9))
async def test_an_erasure_may_die_anywhere(stores: Stores, calls: int, after: bool) -> None:
    """Whoever took a mark and then read a key hears of the erasure later, and nobody hears of one without a tombstone.
    Somebody who only begins after the crash knows what is decided."""
    early, late = stores.open(), stores.open()
    await early.insert({"A-1": key("k1"), "A-0": key("k0")})
    await early.erase("A-0", NOW)
    mark = (await early.erasures(None)).mark
    died = False
    try:
        await stores.open(Dies(calls, after=after)).erase("A-1", NOW)
    except KeyStoreUnavailable:
        died = True
    assert died or calls > 5, "an erasure takes some calls"
    # One that begins now.
    late_mark = (await late.erasures(None)).mark
    late_read = await late.load(["A-1"])
    assert (late_mark > mark) == (late_read["A-1"] == GONE), "decided and carried out, or neither"
    # One that was there before.
    heard = await early.erasures(mark)
    assert heard == (Erasures(("A-1",), late_mark) if late_mark > mark else Erasures((), mark))
    assert await early.load(["A-1"]) == late_read
    # Again, by another: all hear, unless they know already.
    await stores.open().erase("A-1", NOW)
    assert (await early.load(["A-1"]))["A-1"] == GONE
    for store, at, read in ((early, heard.mark, heard.subjects == ()), (late, late_mark, late_read["A-1"] != GONE)):
        assert ((await store.erasures(at)).subjects == ("A-1",)) == read


@pytest.mark.parametrize("calls", range(1, 9))
async def test_the_next_erasure_finishes_one_that_died(stores: Stores, calls: int) -> None:
    """Also when nobody listened in between: what is listed is carried out."""
    await stores.open().insert({"A-1": key("k1"), "A-2": key("k2")})
    try:
        await stores.open(Dies(calls, after=True)).erase("A-1", NOW)
    except KeyStoreUnavailable:
        pass
    await stores.open().erase("A-2", NOW)
    heard = await stores.open().erasures(0)
    known = await stores.open().load(["A-1", "A-2"])
    assert known["A-2"] == GONE
    assert ("A-1" in heard.subjects) == (known["A-1"] == GONE)
    assert heard.mark == len(heard.subjects)


async def twice(operation: str, request: Request, go: Go) -> dict[str, Any]:
    """The first answer is lost and the client asks again."""
    if operation in ("PutItem", "UpdateItem"):
        try:
            await go()
        except KisekiError:
            pass
    return await go()


async def test_lost_answers_change_nothing(stores: Stores) -> None:
    store = stores.open(twice)
    assert await store.insert({"A-1": key("k1"), "A-2": key("k2")}) == {
        "A-1": SubjectKeys((key("k1"),)),
        "A-2": SubjectKeys((key("k2"),)),
    }
    assert await store.replace([Rewrapped("A-1", key("k1"), b"new")]) == 1
    await store.erase("A-2", NOW)
    assert await store.erasures(0) == (("A-2",), 1)
    assert await store.load(["A-1", "A-2"]) == {"A-1": SubjectKeys((WrappedKey("k1", b"new"),)), "A-2": GONE}


async def test_a_read_that_gives_only_parts_is_continued(stores: Stores) -> None:
    async def in_parts(operation: str, request: Request, go: Go) -> dict[str, Any]:
        answer = await go()
        for table, items in answer.get("Responses", {}).items():
            kept = items[: len(items) // 2 + 1]
            keys = [{name: item[name] for name in ("subject", "number")} for item in items[len(kept) :]]
            answer["Responses"][table] = kept
            if keys:
                answer["UnprocessedKeys"] = {table: {"Keys": keys, "ConsistentRead": True}}
        return answer

    subjects = [f"A-{number}" for number in range(30)]
    await stores.open().insert({subject: key(subject) for subject in subjects})
    found = await stores.open(in_parts).load([*subjects, "A-unknown"])
    assert found == {subject: SubjectKeys((key(subject),)) for subject in subjects}


async def test_a_read_that_gives_nothing_for_long_is_unavailable(stores: Stores) -> None:
    async def nothing(operation: str, request: Request, go: Go) -> dict[str, Any]:
        return {"Responses": {}, "UnprocessedKeys": request["RequestItems"]}

    with pytest.raises(KeyStoreUnavailable, match="is throttled"):
        await stores.open(nothing).load(["A-1"])


async def test_a_place_that_a_read_passed_too_early_is_looked_at_again(stores: Stores) -> None:
    """A read of many pages may see entry 3 and not entry 2, which was put before it but after the page was read."""
    for subject in ("A-1", "A-2", "A-3"):
        await stores.open().erase(subject, NOW)
    queries = 0

    async def passed(operation: str, request: Request, go: Go) -> dict[str, Any]:
        nonlocal queries
        answer = await go()
        if operation == "Query":
            queries += 1
            if queries == 1:
                answer["Items"] = [item for item in answer["Items"] if item["number"] != {"N": "2"}]
        return answer

    assert await stores.open(passed).erasures(0) == (("A-1", "A-2", "A-3"), 3)
    assert queries == 2


async def test_a_feed_of_many_pages_is_read_to_its_end(stores: Stores) -> None:
    for number in range(5):
        await stores.open().erase(f"A-{number}", NOW)

    async def small_pages(operation: str, request: Request, go: Go) -> dict[str, Any]:
        if operation == "Query":
            assert isinstance(request, dict)
            request["Limit"] = 2
        return await go()

    heard = await stores.open(small_pages).erasures(0)
    assert heard == (tuple(f"A-{number}" for number in range(5)), 5)


async def test_an_entry_that_is_missing_is_damage(stores: Stores) -> None:
    store = stores.open()
    for subject in ("A-1", "A-2", "A-3"):
        await store.erase(subject, NOW)
    table = stores.address.table("keys")
    lost = {"subject": {"S": "$erasures"}, "number": {"N": "2"}}
    await store._client.call("DeleteItem", {"TableName": table, "Key": lost})
    with pytest.raises(KeyStoreCorrupt, match="lacks erasures after number 0"):
        await store.erasures(0)
    assert (await store.erasures(2)).subjects == ("A-3",)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"keys": {"S": "text"}},
        {"keys": {"L": [{"M": {"id": {"S": "k"}}}]}},
        {"keys": {"L": [{"M": {"id": {"S": "k"}, "wrapped": {"S": "text"}}}]}},
        {"erased-at": {"S": "yesterday"}},
        {"erased-at": {"N": "1"}},
    ],
)
async def test_damage_is_never_taken_for_an_answer(stores: Stores, content: dict[str, Any]) -> None:
    store = stores.open()
    item = {"subject": {"S": "A-1"}, "number": {"N": "0"}, **content}
    await store._client.call("PutItem", {"TableName": stores.address.table("keys"), "Item": item})
    with pytest.raises(KeyStoreCorrupt):
        await store.load(["A-1"])
    with pytest.raises(KeyStoreCorrupt):
        await store.insert({"A-1": key("k1")})


async def test_no_item_of_the_table_holds_a_destroyed_key(stores: Stores) -> None:
    store = stores.open()
    await store.insert({"A-1": key("k1"), "A-2": key("k2")})

    async def everything() -> str:
        return str(await store._client.call("Scan", {"TableName": stores.address.table("keys")}))

    destroyed = base64.b64encode(key("k1").wrapped).decode()
    assert destroyed in await everything()
    await store.erase("A-1", NOW)
    assert destroyed not in await everything()
    await store.replace([Rewrapped("A-2", key("k2"), b"new")])
    assert base64.b64encode(key("k2").wrapped).decode() not in await everything()


async def test_without_a_table_everything_says_to_migrate(unmade: Stores) -> None:
    store = await DynamoDbKeyStore.open(unmade.address)
    assert await attempts(store) == ["NOT_MIGRATED"] * 7
    assert await DynamoDbKeyStore.migrate(unmade.address) == [unmade.address.table("keys")]
    assert await DynamoDbKeyStore.migrate(unmade.address) == []
    assert await store.load(["A-1"]) == {}
    await check_tables(store._client, [KEYS_TABLE])
    await store.close()


async def test_while_dynamodb_is_down_it_opens_and_everything_is_unavailable(
    unmade: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = DynamoDbAddress(prefix="k", region="eu-west-1", endpoint="http://127.0.0.1:1")
    monkeypatch.setattr("kiseki.clients.dynamodb._ATTEMPTS", 2)
    store = await DynamoDbKeyStore.open(nowhere)
    assert await attempts(store) == ["UNAVAILABLE"] * 7
    await store.close()
    assert await attempts(store) == ["UNAVAILABLE"] * 7
