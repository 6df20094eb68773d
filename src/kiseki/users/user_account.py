"""The user account: events, state, decisions. Pure; used by the `users` context.

Order of the file: values, events (their names are the storage format), state and fold, commands, decisions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias, assert_never

from kiseki import (
    Command,
    Decider,
    Erased,
    Event,
    InvalidValue,
    Personal,
    Rejected,
    State,
    StreamId,
    Text,
    ValueObject,
)

_PART = r"[^@\s<>()\[\]\\,;:\"]"
_LABEL = r"(?!-)[^@.\s<>()\[\]\\,;:\"]{1,63}(?<!-)"
_EMAIL_ADDRESS = re.compile(
    # Before the @ no dot at the ends, or two in a row, and nothing that stands around addresses in texts and lists.
    rf"(?!\.)(?!.*\.\.){_PART}{{1,64}}(?<!\.)@(?:{_LABEL}\.)+{_LABEL}"
)


# Values


class FirstName(Text, max_length=50):
    """A person's first name."""


class LastName(Text, max_length=50):
    """A person's last name."""


class EmailAddress(Text, max_length=100):
    """An e-mail address: one @, something before it, a domain with a dot after it."""

    @classmethod
    def check(cls, value: str) -> None:
        """Raises InvalidValue (INVALID_EMAIL_ADDRESS)."""
        if not _EMAIL_ADDRESS.fullmatch(value):
            raise InvalidValue("INVALID_EMAIL_ADDRESS", "must be an e-mail address such as name@example.com")


class PersonName(ValueObject):
    """A person's whole name."""

    first_name: FirstName
    last_name: LastName


# Events. Names and versions are the storage format.


class UserAccountCreated(Event, name="UserAccountCreated", version=1):
    """An account exists."""

    name: Personal[PersonName]
    email_address: Personal[EmailAddress]


class UserAccountRenamed(Event, name="UserAccountRenamed", version=1):
    """Its person has another name."""

    name: Personal[PersonName]


class UserAccountDeleted(Event, name="UserAccountDeleted", version=1):
    """The account is closed; what happened stays readable."""


class UserAccountErased(Event, name="UserAccountErased", version=1, erases_subject=True):
    """The person is forgotten: with this fact the keys of all their personal data are destroyed."""


UserAccountEvent: TypeAlias = UserAccountCreated | UserAccountRenamed | UserAccountDeleted | UserAccountErased


# State


class NotCreated(State):
    """Nothing has happened yet."""


class Active(State):
    """The account is in use."""

    name: Personal[PersonName]


class Deleted(State):
    """The account is closed."""


class Forgotten(State):
    """The account's person was erased."""


UserAccountState: TypeAlias = NotCreated | Active | Deleted | Forgotten


def evolve(state: UserAccountState, event: UserAccountEvent) -> UserAccountState:
    """The state after an event."""
    match event:
        case UserAccountCreated(name=name) | UserAccountRenamed(name=name):
            return Active(name)
        case UserAccountDeleted():
            return Deleted()
        case UserAccountErased():
            return Forgotten()
        case _:
            assert_never(event)


# Commands


class CreateUserAccount(Command):
    """Creates an account and gives it an id."""

    first_name: FirstName
    last_name: LastName
    email_address: EmailAddress


class RenameUserAccount(Command):
    """Changes the name of an account's person."""

    user_account_id: StreamId
    first_name: FirstName
    last_name: LastName


class DeleteUserAccount(Command):
    """Closes an account."""

    user_account_id: StreamId


class EraseUserAccount(Command):
    """Forgets an account's person for ever: their personal data can't be read any more, anywhere."""

    user_account_id: StreamId


UserAccountCommand: TypeAlias = CreateUserAccount | RenameUserAccount | DeleteUserAccount | EraseUserAccount


# Decisions


def decide(command: UserAccountCommand, state: UserAccountState) -> Sequence[UserAccountEvent]:
    """What a command does to an account in this state. Raises Rejected."""
    match command:
        case CreateUserAccount():
            return _create(command, state)
        case RenameUserAccount():
            return _rename(command, state)
        case DeleteUserAccount():
            return _delete(state)
        case EraseUserAccount():
            return _erase(state)
        case _:
            assert_never(command)


def _create(command: CreateUserAccount, state: UserAccountState) -> Sequence[UserAccountEvent]:
    if not isinstance(state, NotCreated):
        raise Rejected("ACCOUNT_EXISTS", "an account with this id exists")
    return (UserAccountCreated(PersonName(command.first_name, command.last_name), command.email_address),)


def _rename(command: RenameUserAccount, state: UserAccountState) -> Sequence[UserAccountEvent]:
    name = PersonName(command.first_name, command.last_name)
    match state:
        case Active(name=Erased()):
            raise _erased()
        case Active(name=current) if current == name:
            raise Rejected("SAME_NAME", "the account already has this name")
        case Active():
            return (UserAccountRenamed(name),)
        case NotCreated():
            raise _not_found()
        case Deleted():
            raise _deleted()
        case Forgotten():
            raise _erased()
        case _:
            assert_never(state)


def _delete(state: UserAccountState) -> Sequence[UserAccountEvent]:
    match state:
        case Active():
            return (UserAccountDeleted(),)
        case NotCreated():
            raise _not_found()
        case Deleted():
            raise _deleted()
        case Forgotten():
            raise _erased()
        case _:
            assert_never(state)


def _erase(state: UserAccountState) -> Sequence[UserAccountEvent]:
    match state:
        case Active() | Deleted():
            return (UserAccountErased(),)
        case Forgotten():
            return ()
        case NotCreated():
            raise _not_found()
        case _:
            assert_never(state)


def _not_found() -> Rejected:
    return Rejected("ACCOUNT_NOT_FOUND", "there is no account with this id")


def _deleted() -> Rejected:
    return Rejected("ACCOUNT_DELETED", "the account was deleted")


def _erased() -> Rejected:
    return Rejected("ACCOUNT_ERASED", "the account was erased")


user_account = Decider(
    "UserAccount",
    initial=NotCreated(),
    decide=decide,
    evolve=evolve,
    commands=UserAccountCommand,
    events=UserAccountEvent,
)
