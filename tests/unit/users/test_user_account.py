"""What a user account accepts and refuses."""

import pytest

from kiseki import ERASED, StreamId
from kiseki.testing import scenario
from kiseki.users.user_account import (
    CreateUserAccount,
    DeleteUserAccount,
    EmailAddress,
    EraseUserAccount,
    FirstName,
    LastName,
    PersonName,
    RenameUserAccount,
    UserAccountCreated,
    UserAccountDeleted,
    UserAccountErased,
    UserAccountRenamed,
    user_account,
)

ID = StreamId("01JD00000000000000000000AA")
TARO = PersonName(FirstName("太郎"), LastName("山田"))
HANAKO = PersonName(FirstName("花子"), LastName("山田"))
EMAIL = EmailAddress("taro@example.com")
CREATED = UserAccountCreated(TARO, EMAIL)
CREATE = CreateUserAccount(FirstName("太郎"), LastName("山田"), EMAIL)
RENAME = RenameUserAccount(ID, FirstName("花子"), LastName("山田"))


def test_creating_records_name_and_address() -> None:
    scenario(user_account).when(CREATE).then(CREATED)


def test_an_id_is_used_once() -> None:
    scenario(user_account).given(CREATED).when(CREATE).then_rejected("ACCOUNT_EXISTS")


def test_renaming() -> None:
    scenario(user_account).given(CREATED).when(RENAME).then(UserAccountRenamed(HANAKO))


def test_renaming_to_the_same_name_is_refused() -> None:
    given = scenario(user_account).given(CREATED, UserAccountRenamed(HANAKO))
    given.when(RENAME).then_rejected("SAME_NAME")


def test_deleting_and_then_nothing_more() -> None:
    given = scenario(user_account).given(CREATED)
    given.when(DeleteUserAccount(ID)).then(UserAccountDeleted())
    deleted = scenario(user_account).given(CREATED, UserAccountDeleted())
    deleted.when(RENAME).then_rejected("ACCOUNT_DELETED")
    deleted.when(DeleteUserAccount(ID)).then_rejected("ACCOUNT_DELETED")


@pytest.mark.parametrize("command", [RENAME, DeleteUserAccount(ID), EraseUserAccount(ID)])
def test_an_unknown_account_is_refused(
    command: RenameUserAccount | DeleteUserAccount | EraseUserAccount,
) -> None:
    scenario(user_account).when(command).then_rejected("ACCOUNT_NOT_FOUND")


def test_erasing_works_once_also_after_deletion_and_again_does_nothing() -> None:
    scenario(user_account).given(CREATED).when(EraseUserAccount(ID)).then(UserAccountErased())
    deleted = scenario(user_account).given(CREATED, UserAccountDeleted())
    deleted.when(EraseUserAccount(ID)).then(UserAccountErased())
    erased = scenario(user_account).given(UserAccountCreated(ERASED, ERASED), UserAccountErased())
    erased.when(EraseUserAccount(ID)).then_nothing()
    erased.when(RENAME).then_rejected("ACCOUNT_ERASED")
    erased.when(DeleteUserAccount(ID)).then_rejected("ACCOUNT_ERASED")


def test_an_account_whose_key_is_gone_before_its_last_fact_is_read_counts_as_erased() -> None:
    scenario(user_account).given(UserAccountCreated(ERASED, ERASED)).when(RENAME).then_rejected("ACCOUNT_ERASED")
