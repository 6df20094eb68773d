"""`Allow`: who may send a command or ask a query. Contexts and queries are defined with it; `RoleAccess` applies it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, Final

import msgspec

from kiseki.kernel.errors import DefinitionError
from kiseki.kernel.ports import Principal

__all__ = ["Allow", "allow_of"]

_ADMINISTRATORS: Final = frozenset({"admin"})


class Allow:
    """Who may do something: `Allow({"admin"}, owner={"user"})`.

    `roles` may do it to every object, `owner` only to the object that is their own: its id equals the principal's
    `user_id`, which is the token's claim `userId`, else its `sub`. `of` is the field of the command or of the query's
    arguments that holds the id, or a tuple of ids, all of which have to be its own; of a command it is the StreamId
    field unless told otherwise. Roles are compared exactly. Raises DefinitionError.
    """

    def __init__(self, roles: Collection[str], *, owner: Collection[str] = (), of: str | None = None) -> None:
        for names in (roles, owner):
            if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
                raise DefinitionError("roles are a set of names, such as {'user', 'admin'}")
        if not roles and not owner:
            raise DefinitionError("name the roles that may do it; without any it would be denied to all")
        self.roles = frozenset(roles)
        self.owner = frozenset(owner) - self.roles
        self.of = of

    def __repr__(self) -> str:
        return f"Allow({sorted(self.roles)}, owner={sorted(self.owner)}, of={self.of!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Allow) and (self.roles, self.owner, self.of) == (other.roles, other.owner, other.of)

    def __hash__(self) -> int:
        return hash((self.roles, self.owner, self.of))

    def somewhere(self, principal: Principal) -> bool:
        """Whether the principal may do it to some object."""
        return not (self.roles.isdisjoint(principal.roles) and self.owner.isdisjoint(principal.roles))

    def on(self, principal: Principal, given: object) -> bool:
        """Whether the principal may do it to the object, or all objects, that a command or a query names."""
        if not self.roles.isdisjoint(principal.roles):
            return True
        if self.owner.isdisjoint(principal.roles) or self.of is None or not principal.user_id:
            return False
        named = getattr(given, self.of)
        objects = (named,) if isinstance(named, str) else named
        return all(one == principal.user_id for one in objects)

    def administers(self, principal: Principal, given: object) -> bool:
        """Whether it is allowed as an administrator does it: to what is not their own, or where only they may."""
        if not self.owner:
            return self.roles == _ADMINISTRATORS
        return not self.on(msgspec.structs.replace(principal, roles=principal.roles - self.roles), given)

    def objects(self, given: object) -> str | None:
        """The ids of the objects that a command or a query names, as text."""
        named = None if self.of is None else getattr(given, self.of)
        return named if named is None or isinstance(named, str) else ", ".join(named)


def allow_of(given: Allow | Collection[str], where: str, fields: type[Any], default: str | None = None) -> Allow:
    """What was given in a definition, complete: a set of roles is an Allow; `of` is a field of `fields`.

    Raises DefinitionError, which begins with `where`.
    """
    try:
        found = given if isinstance(given, Allow) else Allow(given)
    except (DefinitionError, TypeError) as problem:
        raise DefinitionError(f"{where}: {problem}") from problem
    if not found.owner:
        return found
    of = found.of or default
    if of is None:
        raise DefinitionError(
            f"{where}: owners may do it to their own object only, so name the field that holds its id: Allow(…, of=…)"
        )
    if of not in {field.name for field in dataclasses.fields(fields)}:
        raise DefinitionError(f"{where}: {fields.__name__} has no field {of}")
    return Allow(found.roles, owner=found.owner, of=of)
