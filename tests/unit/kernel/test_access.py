"""Who may do what: roles, and whose object it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiseki import Allow, Arguments, Command, DefinitionError, StreamId
from kiseki.kernel.access import allow_of
from kiseki.kernel.ports import Principal

OWN = Allow({"admin"}, owner={"user"}, of="account")
ROLES = st.frozensets(st.sampled_from(["user", "admin", "auditor", "User", "admin ", ""]))


class Rename(Command):
    account: StreamId


class Many(Arguments):
    account: tuple[StreamId, ...]


class Nothing(Arguments):
    term: str


def who(*roles: str, user_id: str = "a") -> Principal:
    return Principal(subject="s", actor="x", roles=frozenset(roles), user_id=user_id)


def test_roles_go_for_every_object_and_owners_for_their_own() -> None:
    assert OWN.on(who("admin"), Rename(StreamId("b")))
    assert OWN.on(who("user"), Rename(StreamId("a")))
    assert not OWN.on(who("user"), Rename(StreamId("b")))
    assert OWN.on(who("user", "admin"), Rename(StreamId("b")))
    assert OWN.somewhere(who("user"))
    assert not OWN.somewhere(who("auditor"))


def test_of_many_objects_all_have_to_be_their_own() -> None:
    assert OWN.on(who("user"), Many((StreamId("a"), StreamId("a"))))
    assert not OWN.on(who("user"), Many((StreamId("a"), StreamId("b"))))
    assert OWN.on(who("user"), Many(()))


def test_what_is_done_as_an_administrator() -> None:
    assert OWN.administers(who("admin"), Rename(StreamId("b")))
    assert OWN.administers(who("admin", "user"), Rename(StreamId("b")))
    assert not OWN.administers(who("admin", "user"), Rename(StreamId("a")))
    assert not OWN.administers(who("user"), Rename(StreamId("a")))
    assert Allow({"admin"}).administers(who("admin"), Nothing("x"))
    assert not Allow({"admin", "user"}).administers(who("admin"), Nothing("x"))
    assert OWN.objects(Many((StreamId("a"), StreamId("b")))) == "a, b"
    assert Allow({"admin"}).objects(Nothing("x")) is None


@pytest.mark.parametrize("user_id", ["", "A", "a ", " a", "aa", "\u0430"])
def test_an_id_is_compared_exactly_and_nobody_is_nobody(user_id: str) -> None:
    assert not OWN.on(who("user", user_id=user_id), Rename(StreamId("a")))
    assert not OWN.on(who("user", user_id=""), Many((StreamId("a"),)))


@given(ROLES, st.sampled_from(["a", "b"]))
def test_nobody_gets_in_without_a_role_that_is_named(roles: frozenset[str], account: str) -> None:
    allowed = OWN.on(who(*roles), Rename(StreamId(account)))
    assert allowed == ("admin" in roles or ("user" in roles and account == "a"))
    assert OWN.somewhere(who(*roles)) == bool(roles & {"admin", "user"})


def test_what_is_defined_by_halves_is_refused() -> None:
    for roles in ((), "user", {""}, [1]):
        with pytest.raises(DefinitionError):
            allow_of(roles, "query q", Nothing)  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match=r"query q: .*name the field"):
        allow_of(Allow((), owner={"user"}), "query q", Nothing)
    with pytest.raises(DefinitionError, match="Nothing has no field account"):
        allow_of(OWN, "query q", Nothing)
    assert allow_of(Allow({"admin"}, owner={"user"}), "access", Rename, "account") == OWN
    assert allow_of({"user"}, "query q", Nothing) == Allow({"user"})
