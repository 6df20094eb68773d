"""User accounts as pure functions: commands are decided on the state that events left."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

MAX_NAME_LENGTH = 50
MAX_EMAIL_LENGTH = 100
EMAIL_PATTERN = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")


class CommandError(Exception):
    """The command is understood and refused."""


class ValidationError(Exception):
    """The input is not acceptable; the message names every field at fault."""


@dataclass(frozen=True)
class UserAccountCreated:
    first_name: str
    last_name: str
    email_address: str


@dataclass(frozen=True)
class UserAccountRenamed:
    first_name: str
    last_name: str


UserAccountEvent = UserAccountCreated | UserAccountRenamed
EVENT_TYPES: dict[str, type[UserAccountCreated] | type[UserAccountRenamed]] = {
    "UserAccountCreated": UserAccountCreated,
    "UserAccountRenamed": UserAccountRenamed,
}


@dataclass(frozen=True)
class UserAccount:
    first_name: str
    last_name: str
    email_address: str


def evolve(state: UserAccount | None, event: UserAccountEvent) -> UserAccount | None:
    match event:
        case UserAccountCreated():
            return UserAccount(event.first_name, event.last_name, event.email_address)
        case UserAccountRenamed():
            assert state is not None, "a rename follows a creation"
            return UserAccount(event.first_name, event.last_name, state.email_address)


def replay(events: Iterable[UserAccountEvent]) -> UserAccount | None:
    state: UserAccount | None = None
    for event in events:
        state = evolve(state, event)
    return state


def decide_create(first_name: str, last_name: str, email_address: str) -> UserAccountCreated:
    errors = [*name_errors(first_name, last_name), *email_errors(email_address)]
    if errors:
        raise ValidationError("; ".join(errors))
    return UserAccountCreated(first_name, last_name, email_address)


def decide_rename(state: UserAccount | None, first_name: str, last_name: str) -> UserAccountRenamed:
    errors = name_errors(first_name, last_name)
    if errors:
        raise ValidationError("; ".join(errors))
    if state is None:
        raise CommandError("The user account does not exist")
    if (state.first_name, state.last_name) == (first_name, last_name):
        raise CommandError("The user account already has this name")
    return UserAccountRenamed(first_name, last_name)


def name_errors(first_name: str, last_name: str) -> list[str]:
    return [
        f"{field} must have 1 to {MAX_NAME_LENGTH} characters"
        for field, value in (("firstName", first_name), ("lastName", last_name))
        if not 1 <= len(value.strip()) <= MAX_NAME_LENGTH
    ]


def email_errors(email_address: str) -> list[str]:
    if len(email_address) > MAX_EMAIL_LENGTH or not EMAIL_PATTERN.fullmatch(email_address):
        return ["emailAddress must be an e-mail address"]
    return []
