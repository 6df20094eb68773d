"""The read model of user accounts: its table, the projection that keeps it, and the queries that read it."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from datetime import datetime
from typing import Any, assert_never

from sqlalchemy import (
    Column,
    Index,
    MetaData,
    Row,
    Select,
    String,
    Table,
    and_,
    bindparam,
    delete,
    insert,
    or_,
    select,
    update,
)

from kiseki import (
    Allow,
    Arguments,
    Change,
    EventMetadata,
    Projection,
    Query,
    ReadModel,
    Rejected,
    StreamId,
    Text,
    UtcDateTime,
    View,
    WholeNumber,
)
from kiseki.users.user_account import (
    PersonName,
    UserAccountCreated,
    UserAccountDeleted,
    UserAccountErased,
    UserAccountEvent,
    UserAccountRenamed,
)

accounts = Table(
    "accounts",
    MetaData(schema="user_accounts"),
    Column("id", String(200), primary_key=True),
    Column("first_name", String(50)),
    Column("last_name", String(50)),
    Column("full_name", String(101)),
    Column("search_text", String(1_000)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    # A deleted account keeps its place in the order of pages, and nothing else.
    Column("deleted_at", UtcDateTime),
    Index("accounts_in_order", "created_at", "id"),
)


# Projection. The statements are made once; what an event costs is their parameters.

_NAMES = ("first_name", "last_name", "full_name", "search_text")
_INSERT = insert(accounts)
_UPDATE = update(accounts).where(accounts.c.id == bindparam("account"))
_RENAME = _UPDATE.values({name: bindparam(name) for name in ("updated_at", *_NAMES)})
_DELETE = _UPDATE.values({"updated_at": bindparam("at"), "deleted_at": bindparam("at"), **dict.fromkeys(_NAMES)})
_ERASE = delete(accounts).where(accounts.c.id == bindparam("account"))


def apply(event: UserAccountEvent, metadata: EventMetadata) -> Sequence[Change]:
    """The changes that follow from one event."""
    account, at = metadata.stream_id, metadata.occurred_at
    match event:
        case UserAccountCreated(name=PersonName() as name):
            return ((_INSERT, {"id": account, "created_at": at, "updated_at": at, **_named(name)}),)
        case UserAccountRenamed(name=PersonName() as name):
            return ((_RENAME, {"account": account, "updated_at": at, **_named(name)}),)
        case UserAccountCreated() | UserAccountRenamed():
            # Read again after an erasure: there is no name, and the row that it was for is removed further on.
            return ()
        case UserAccountDeleted():
            return ((_DELETE, {"account": account, "at": at}),)
        case UserAccountErased():
            return ((_ERASE, {"account": account}),)
        case _:
            assert_never(event)


def _named(name: PersonName) -> dict[str, str]:
    full_name = f"{name.first_name} {name.last_name}"
    return {
        "first_name": name.first_name,
        "last_name": name.last_name,
        "full_name": full_name,
        "search_text": _folded(full_name),
    }


def _folded(text: str) -> str:
    """Text as it is compared: case and compatibility forms do not matter (Unicode NFKC and case folding)."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


user_accounts = Projection(
    "user_accounts",
    version=1,
    tables=[accounts],
    events=UserAccountEvent,
    apply=apply,
)


# Queries


class PageSize(WholeNumber, minimum=1, maximum=1_000):
    """How many items a page has."""


class SearchTerm(Text, max_length=100):
    """What to look for in a name."""


class UserAccount(View):
    """An account that exists and is not deleted."""

    id: str
    first_name: str
    last_name: str
    full_name: str
    created_at: datetime
    updated_at: datetime


class GetUserAccount(Arguments):
    """Which account."""

    user_account_id: StreamId


class GetUserAccounts(Arguments):
    """Which page: `first` items after the account with the id `after`."""

    first: PageSize = PageSize(100)
    after: StreamId | None = None


class GetUserAccountsByIds(Arguments):
    """Which accounts."""

    user_account_ids: tuple[StreamId, ...]


class SearchUserAccounts(Arguments):
    """What to look for, and which page."""

    search_term: SearchTerm
    first: PageSize = PageSize(100)
    after: StreamId | None = None


async def get_user_account(arguments: GetUserAccount, read: ReadModel) -> UserAccount | None:
    """The account of an id; null when there is none or it was deleted."""
    row = await read.first(_existing().where(accounts.c.id == arguments.user_account_id))
    return None if row is None else _view(row)


async def get_user_accounts(arguments: GetUserAccounts, read: ReadModel) -> tuple[UserAccount, ...]:
    """All accounts, a page at a time, in order of creation."""
    page = await _page(read, _existing(), arguments.first, arguments.after)
    return tuple(_view(row) for row in page)


async def get_user_accounts_by_ids(arguments: GetUserAccountsByIds, read: ReadModel) -> tuple[UserAccount, ...]:
    """The accounts of these ids that exist, in the order of the ids."""
    ids = dict.fromkeys(arguments.user_account_ids)
    rows = {row.id: row for row in await read.all(_existing().where(accounts.c.id.in_(ids)))}
    return tuple(_view(rows[key]) for key in ids if key in rows)


async def search_user_accounts(arguments: SearchUserAccounts, read: ReadModel) -> tuple[UserAccount, ...]:
    """Accounts whose full name contains the term, whatever its case or width, in order of creation."""
    matching = _existing().where(accounts.c.search_text.contains(_folded(arguments.search_term), autoescape=True))
    page = await _page(read, matching, arguments.first, arguments.after)
    return tuple(_view(row) for row in page)


def _existing() -> Select[Any]:
    return select(accounts).where(accounts.c.deleted_at.is_(None))


async def _page(read: ReadModel, statement: Select[Any], first: int, after: str | None) -> Sequence[Row[Any]]:
    if after is not None:
        last = await read.first(select(accounts.c.created_at).where(accounts.c.id == after))
        if last is None:
            raise Rejected("UNKNOWN_CURSOR", "there is no account with the id given as `after`; begin again without it")
        later = accounts.c.created_at > last.created_at
        same_time = and_(accounts.c.created_at == last.created_at, accounts.c.id > after)
        statement = statement.where(or_(later, same_time))
    return await read.all(statement.order_by(accounts.c.created_at, accounts.c.id).limit(first))


def _view(row: Row[Any]) -> UserAccount:
    return UserAccount(
        id=row.id,
        first_name=row.first_name,
        last_name=row.last_name,
        full_name=row.full_name,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


ADMIN = Allow({"admin"})
get_user_accounts_query = Query("getUserAccounts", get_user_accounts, reads=[user_accounts], roles=ADMIN)
queries = [
    Query(
        "getUserAccount",
        get_user_account,
        reads=[user_accounts],
        roles=Allow({"admin"}, owner={"user"}, of="user_account_id"),
    ),
    get_user_accounts_query,
    Query(
        "getUserAccountsByIds",
        get_user_accounts_by_ids,
        reads=[user_accounts],
        roles=Allow({"admin"}, owner={"user"}, of="user_account_ids"),
    ),
    Query("searchUserAccounts", search_user_accounts, reads=[user_accounts], roles=ADMIN),
]
