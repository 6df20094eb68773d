"""`Policy`: a small judge of IAM policies, for what the policies of this project say. Used by the test of the roles.

It knows Allow and Deny, wildcards, and the operators of conditions in `_OPERATORS`; whatever else a policy holds is an
error, never ignored. https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

__all__ = ["Context", "Grant", "Needed", "Policy"]

Context: TypeAlias = Mapping[str, Sequence[str]]
"""The values of condition keys; a key that the request does not have is not in it."""


class Needed(NamedTuple):
    """What a request has to be allowed."""

    action: str
    resource: str
    context: Context

    def __str__(self) -> str:
        return f"{self.action} on {self.resource}"


class Grant(NamedTuple):
    """One action on one resource, as a statement that allows says it."""

    action: str
    resource: str
    statement: str
    """Its Sid."""

    def __str__(self) -> str:
        return f"{self.statement}: {self.action} on {self.resource}"


class Policy:
    """One document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        assert document["Version"] == "2012-10-17"
        self.document = document
        self._statements = [_Statement(each) for each in document["Statement"]]

    def grants(self) -> list[Grant]:
        """Everything it allows, one by one."""
        return [grant for statement in self._statements if statement.allows for grant in statement.grants()]

    def allowed_by(self, needed: Needed) -> list[Grant]:
        """What of it allows this; nothing when it is not allowed."""
        matching = [statement for statement in self._statements if statement.matches(needed)]
        if any(not statement.allows for statement in matching):
            return []
        return [grant for statement in matching for grant in statement.grants() if _grants(grant, needed)]


class _Statement:
    _PARTS: Final = frozenset({"Sid", "Effect", "Action", "Resource", "Condition", "Principal"})

    def __init__(self, statement: Mapping[str, Any]) -> None:
        assert statement.keys() <= self._PARTS, f"this judge does not know all of {sorted(statement)}"
        self.sid = str(statement["Sid"])
        self.allows = {"Allow": True, "Deny": False}[statement["Effect"]]
        self._actions = _several(statement["Action"])
        self._resources = _several(statement["Resource"])
        self._conditions = [
            (operator, key, _several(values))
            for operator, keys in statement.get("Condition", {}).items()
            for key, values in keys.items()
        ]

    def grants(self) -> list[Grant]:
        return [Grant(action, resource, self.sid) for action in self._actions for resource in self._resources]

    def matches(self, needed: Needed) -> bool:
        return any(_grants(grant, needed) for grant in self.grants()) and all(
            _holds(operator, needed.context.get(key), values) for operator, key, values in self._conditions
        )


def _several(value: Any) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else [str(value)]


def _grants(grant: Grant, needed: Needed) -> bool:
    return _like(needed.action.lower(), grant.action.lower()) and _like(needed.resource, grant.resource)


def _like(value: str, pattern: str) -> bool:
    return _expression(pattern).fullmatch(value) is not None


@lru_cache(maxsize=4_096)
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile("".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in pattern), re.DOTALL)


def _holds(operator: str, actual: Sequence[str] | None, expected: Sequence[str]) -> bool:
    if operator == "Null":
        return (actual is None) == (expected == ["true"])
    for_all, _, plain = operator.rpartition(":")
    matches, when_missing = _OPERATORS[plain]
    if for_all:
        assert for_all == "ForAllValues", f"this judge does not know {operator}"
        return all(any(matches(value, each) for each in expected) for value in actual or ())
    if actual is None:
        return when_missing
    return any(matches(value, each) for value in actual for each in expected)


_OPERATORS: Final[Mapping[str, tuple[Callable[[str, str], bool], bool]]] = {
    "StringEquals": (str.__eq__, False),
    "StringLike": (_like, False),
    "ArnEquals": (_like, False),
    "ArnLike": (_like, False),
    "Bool": (lambda value, expected: value.lower() == expected.lower(), False),
}
