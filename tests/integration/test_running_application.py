"""The whole path inside a test: commands in, facts, read model, erasure."""

from __future__ import annotations

import pytest

from examples.inventory import app as inventory
from examples.inventory.domain import ArticleName, OrderId, Quantity, ReceiveStock, ReserveStock, ShipStock
from examples.inventory.read_model import GetStock, LowStock, StockLevel, Threshold
from kiseki import ERASED, Rejected, StreamId
from kiseki.testing import running
from kiseki.users import app as users
from kiseki.users.read_model import (
    GetUserAccount,
    GetUserAccounts,
    GetUserAccountsByIds,
    PageSize,
    SearchTerm,
    SearchUserAccounts,
    UserAccount,
)
from kiseki.users.user_account import (
    CreateUserAccount,
    DeleteUserAccount,
    EmailAddress,
    EraseUserAccount,
    FirstName,
    LastName,
    RenameUserAccount,
    UserAccountCreated,
    UserAccountErased,
)


def create(first: str, last: str) -> CreateUserAccount:
    return CreateUserAccount(FirstName(first), LastName(last), EmailAddress("someone@example.com"))


def ids(answer: object) -> list[str]:
    assert isinstance(answer, tuple)
    return [account.id for account in answer]


async def test_every_query_sees_what_was_just_written() -> None:
    async with running(users) as service:
        taro = StreamId((await service.send(create("太郎", "山田"))).stream_id)
        hanako = StreamId((await service.send(create("Ｈanako", "50% O'Brien_x"))).stream_id)
        await service.send(RenameUserAccount(taro, FirstName("太郎"), LastName("田中")))
        account = await service.ask("getUserAccount", GetUserAccount(taro))
        assert isinstance(account, UserAccount)
        assert (account.first_name, account.last_name, account.full_name) == ("太郎", "田中", "太郎 田中")
        assert account.updated_at > account.created_at
        assert ids(await service.ask("getUserAccounts", GetUserAccounts())) == [taro, hanako]
        by_ids = GetUserAccountsByIds((hanako, StreamId("unknown"), taro, hanako))
        assert ids(await service.ask("getUserAccountsByIds", by_ids)) == [hanako, taro]
        for term, found in (
            ("田中", [taro]), ("HANAKO", [hanako]), ("hanako", [hanako]), ("50%", [hanako]), ("%", [hanako]),
            ("_", [hanako]), ("o'brien", [hanako]), ("山田", []), ("0_x", []),
        ):  # fmt: skip
            answer = await service.ask("searchUserAccounts", SearchUserAccounts(SearchTerm(term)))
            assert ids(answer) == found, term


async def test_pages_have_no_gap_and_no_repeat_also_when_accounts_go() -> None:
    async with running(users) as service:
        created = [StreamId((await service.send(create("a", f"n{number}"))).stream_id) for number in range(7)]
        seen: list[str] = []
        after = None
        for page in range(4):
            answer = await service.ask("getUserAccounts", GetUserAccounts(PageSize(2), after))
            seen += ids(answer)
            if not answer:
                break
            after = StreamId(seen[-1])
            if page == 0:
                await service.send(DeleteUserAccount(after))
        assert seen == created
        with pytest.raises(Rejected) as refused:
            await service.ask("getUserAccounts", GetUserAccounts(PageSize(2), StreamId("unknown")))
        assert refused.value.code == "UNKNOWN_CURSOR"


async def test_a_deleted_account_is_not_found_and_an_erased_one_is_nowhere() -> None:
    async with running(users) as service:
        deleted = await service.send(create("太郎", "山田"))
        await service.send(DeleteUserAccount(StreamId(deleted.stream_id)))
        assert await service.ask("getUserAccount", GetUserAccount(StreamId(deleted.stream_id))) is None
        erased = await service.send(create("花子", "山田"))
        await service.send(EraseUserAccount(StreamId(erased.stream_id)))
        assert await service.ask("getUserAccount", GetUserAccount(StreamId(erased.stream_id))) is None
        assert await service.events(erased.stream) == [UserAccountCreated(ERASED, ERASED), UserAccountErased()]
        assert ids(await service.ask("getUserAccounts", GetUserAccounts())) == []


async def test_idempotency_and_rejection_are_as_in_service() -> None:
    async with running(users) as service:
        first = await service.send(create("a", "b"), idempotency_key="k")
        assert (await service.send(create("a", "b"), idempotency_key="k")).stream == first.stream
        with pytest.raises(Rejected):
            await service.send(RenameUserAccount(StreamId(first.stream_id), FirstName("a"), LastName("b")))


async def test_another_context() -> None:
    async with running(inventory) as service:
        sku = StreamId("TEA")
        await service.send(ReceiveStock(sku, ArticleName("緑茶"), Quantity(10)))
        await service.send(ReserveStock(sku, OrderId("A"), Quantity(4)))
        level = await service.ask("getStock", GetStock(sku))
        assert isinstance(level, StockLevel)
        assert (level.on_hand, level.reserved, level.available) == (10, 4, 6)
        assert [(held.order_id, held.quantity) for held in level.reservations] == [("A", 4)]
        await service.send(ShipStock(sku, OrderId("A")))
        low = await service.ask("getLowStock", LowStock(Threshold(6)))
        assert isinstance(low, tuple)
        assert [(item.sku, item.available, item.reservations) for item in low] == [("TEA", 6, ())]
