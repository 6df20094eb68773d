"""The read model of user accounts gives the same answers on every database: the same accounts in the same order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from kiseki import Change, Event, EventMetadata
from kiseki.projection.port import Batch
from kiseki.projection.subscription import Subscription
from kiseki.users.read_model import (
    GetUserAccounts,
    GetUserAccountsByIds,
    PageSize,
    SearchTerm,
    SearchUserAccounts,
    UserAccount,
    get_user_accounts,
    get_user_accounts_by_ids,
    search_user_accounts,
    user_accounts,
)
from kiseki.users.user_account import (
    FirstName,
    LastName,
    PersonName,
    UserAccountCreated,
    UserAccountDeleted,
    UserAccountErased,
    UserAccountRenamed,
    user_account,
)
from tests.integration.projection.parts import PostgresStorage, ReadModels, SqliteStorage

SYLLABLES = ["a", "A", "ä", "Ä", "é", "e", "ss", "ß", "ﬀ", "FF", "İ", "i", "ı", "Σ", "ς", "σ", "太郎", "Ａ", "１"]
SYLLABLES += ["%", "_", "/", "\\", "'", "-", "𝔸", "ﷺ"]
IDS = [f"{letter}{number}" for letter in "aBZz_~-." for number in (1, 10, 2)]


def happenings(chooser: random.Random) -> list[tuple[str, Event, datetime]]:
    """Accounts that are made, renamed, deleted and erased; many of them in the same moment."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    ids = chooser.sample(IDS, len(IDS))
    found: list[tuple[str, Event, datetime]] = [(one, _created(chooser), now) for one in ids]
    for _ in range(40):
        now += timedelta(microseconds=chooser.randrange(2))
        account = chooser.choice(ids)
        what: Any = chooser.choice([UserAccountRenamed, UserAccountRenamed, UserAccountDeleted, UserAccountErased])
        found.append((account, what(name=_name(chooser)) if what is UserAccountRenamed else what(), now))
    return found


def _created(chooser: random.Random) -> Event:
    return UserAccountCreated(name=_name(chooser), email_address="a@b.c")  # type: ignore[arg-type]


def _name(chooser: random.Random) -> PersonName:
    first, last = ("".join(chooser.choices(SYLLABLES, k=chooser.randrange(1, 9))) for _ in range(2))
    return PersonName(first_name=FirstName.trusted(first), last_name=LastName.trusted(last))


async def applied(models: ReadModels, events: Sequence[tuple[str, Event, datetime]]) -> None:
    definition = Subscription(user_accounts, [user_account]).definition
    build = await models.builds.create(user_accounts, definition)
    store = await models.builds.open(user_accounts, build.name, definition)
    changes: list[Change] = []
    for number, (account, event, at) in enumerate(events, 1):
        metadata = EventMetadata(
            stream=f"UserAccount-{account}",
            sequence_number=number,
            event_id=str(number),
            type=event.event_type.name,
            version=1,
            occurred_at=at,
            commit_id=str(number),
            correlation_id="test",
            causation_id=None,
            actor="test",
        )
        changes += user_accounts.apply(event, metadata)
    await store.write(Batch(changes=changes))
    await models.builds.promote(build.name)
    await store.close()


async def answers(models: ReadModels) -> list[tuple[UserAccount, ...]]:
    found = []
    terms = [*SYLLABLES, *("".join(pair) for pair in pairwise(SYLLABLES))]
    async with models.database.open([user_accounts]) as read:
        page: tuple[UserAccount, ...] = await get_user_accounts(GetUserAccounts(first=PageSize(3)), read)
        while page:
            found.append(page)
            page = await get_user_accounts(GetUserAccounts(first=PageSize(3), after=page[-1].id), read)  # type: ignore[arg-type]
        found.append(await get_user_accounts_by_ids(GetUserAccountsByIds(user_account_ids=tuple(IDS)), read))  # type: ignore[arg-type]
        for term in terms:
            found.append(await search_user_accounts(SearchUserAccounts(search_term=SearchTerm(term)), read))
    return found


async def test_both_databases_give_the_same_answers(sqlite: SqliteStorage, postgres: PostgresStorage) -> None:
    events = happenings(random.Random(3))
    found = []
    for storage in (sqlite, postgres):
        models = await storage.open()
        await applied(models, events)
        found.append(await answers(models))
        await models.close()
    assert found[0] == found[1]
    # And they are no empty ones.
    assert sum(map(len, found[0])) > 60
