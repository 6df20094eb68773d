"""The rows that follow from the facts of user accounts."""

from datetime import UTC, datetime

import pytest

from kiseki import ERASED
from kiseki.testing import following
from kiseki.users.read_model import accounts, user_accounts
from kiseki.users.user_account import (
    EmailAddress,
    FirstName,
    LastName,
    PersonName,
    UserAccountCreated,
    UserAccountDeleted,
    UserAccountErased,
    UserAccountRenamed,
)

TARO = PersonName(FirstName("太郎"), LastName("山田"))
HANAKO = PersonName(FirstName("Hanako"), LastName("ＹＡＭＡＤＡ"))
CREATED = UserAccountCreated(TARO, EmailAddress("taro@example.com"))
MONDAY, TUESDAY = datetime(2026, 1, 5, tzinfo=UTC), datetime(2026, 1, 6, tzinfo=UTC)


def test_an_account_is_a_row_that_keeps_its_birthday() -> None:
    with following(user_accounts) as model:
        model.given(CREATED, stream="UserAccount-a", at=MONDAY)
        model.then(accounts, {"id": "a", "full_name": "太郎 山田", "created_at": MONDAY, "updated_at": MONDAY})
        model.given(UserAccountRenamed(HANAKO), stream="UserAccount-a", at=TUESDAY)
        model.then(
            accounts,
            {
                "id": "a",
                "first_name": "Hanako",
                "last_name": "ＹＡＭＡＤＡ",
                "search_text": "hanako yamada",
                "created_at": MONDAY,
                "updated_at": TUESDAY,
            },
        )


def test_a_deleted_account_keeps_its_place_and_no_name() -> None:
    with following(user_accounts) as model:
        model.given(CREATED, UserAccountDeleted(), stream="UserAccount-a")
        nothing = dict.fromkeys(("first_name", "last_name", "full_name", "search_text"))
        model.then(accounts, {"id": "a", **nothing})
        assert model.rows(accounts)[0]["deleted_at"] is not None


def test_an_erased_account_leaves_no_row_also_when_it_is_read_again_without_its_key() -> None:
    with following(user_accounts) as model:
        model.given(CREATED, UserAccountErased(), stream="UserAccount-a").then(accounts)
        again = (UserAccountCreated(ERASED, ERASED), UserAccountRenamed(ERASED), UserAccountErased())
        model.given(*again, stream="UserAccount-b").then(accounts)


def test_the_kit_fails_when_rows_differ() -> None:
    with following(user_accounts) as model:
        model.given(CREATED, stream="UserAccount-a")
        for wrong in ((), ({"id": "b"},), ({"id": "a"}, {"id": "b"})):
            with pytest.raises(AssertionError):
                model.then(accounts, *wrong)
