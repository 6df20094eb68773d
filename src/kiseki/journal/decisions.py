"""Which appends of a group land and which do not: the rules of the contract, the same on every store.

Used by stores that append in groups and hold locks meanwhile: they read what matters, let `Decisions` judge, and write
what was accepted. Pure: nothing here touches a store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Generic, Protocol, TypeVar

from kiseki.journal.port import ClaimChange, ClaimTaken, Commit, Conflict, IdempotencyRecord, IdempotencyTaken
from kiseki.kernel.errors import KisekiError

__all__ = ["Decisions", "Wish", "conflict"]


class Wish(Protocol):
    """One caller's append, as far as the rules look at it."""

    @property
    def commit(self) -> Commit:
        """What is to be appended."""
        ...

    @property
    def claims(self) -> tuple[ClaimChange, ...]:
        """What it takes and releases, in order."""
        ...

    @property
    def idempotency(self) -> IdempotencyRecord | None:
        """What is remembered of it."""
        ...


_W = TypeVar("_W", bound=Wish)


class Decisions(Generic[_W]):
    """The group's own view of the journal: what was there when it began, and what its requests changed so far.

    What was read has to stay true until the group is written, by locks or by looking again.
    """

    def __init__(self, *, keys: Iterable[str], claims: Mapping[tuple[str, str], str]) -> None:
        """`keys`: unexpired idempotency keys that are there; `claims`: the holders of (scope, digest). Of both, those
        that the group names are enough."""
        self.accepted: list[_W] = []
        self._landed: dict[tuple[str, int], Commit] = {}
        self._last: dict[str, int] = {}
        self._keys = set(keys)
        self._claims_before = claims
        self._claims: dict[tuple[str, str], str | None] = dict(claims)

    def judge(
        self, wish: _W, *, last: int, there: str | None, own: Callable[[_W], Commit | KisekiError]
    ) -> Commit | KisekiError:
        """The outcome of one append, after those before it in the group: the first of these rules that applies.

        `last` is the stream's last sequence number and `there` the id of the commit at the wanted place, both as they
        were when the group began; `own` gives the stored commit when it is the caller's, or why it can't be read.
        """
        commit = wish.commit
        own_id = commit.metadata.commit_id
        if there == own_id:
            return own(wish)
        earlier = self._landed.get((commit.stream, commit.first_sequence_number))
        if earlier is not None and earlier.metadata.commit_id == own_id:
            return earlier
        key = wish.idempotency.key if wish.idempotency else None
        if key in self._keys:
            return IdempotencyTaken("a commit with this idempotency key exists")
        if self._last.get(commit.stream, last) != commit.first_sequence_number - 1:
            return conflict(commit)
        changed = self._changed_claims(wish)
        if isinstance(changed, ClaimTaken):
            return changed
        self._claims.update(changed)
        if key is not None:
            self._keys.add(key)
        self._last[commit.stream] = commit.last_sequence_number
        self._landed[commit.stream, commit.first_sequence_number] = commit
        self.accepted.append(wish)
        return commit

    def _changed_claims(self, wish: _W) -> dict[tuple[str, str], str | None] | ClaimTaken:
        stream = wish.commit.stream
        changed: dict[tuple[str, str], str | None] = {}
        for claim in wish.claims:
            value = (claim.scope, claim.digest)
            holder = changed[value] if value in changed else self._claims.get(value)
            if claim.take and holder not in (None, stream):
                return ClaimTaken(claim.scope)
            if claim.take:
                changed[value] = stream
            elif holder == stream:
                changed[value] = None
        return changed

    def taken(self) -> list[tuple[str, str, str]]:
        """Claims to write: scope, digest and the stream that holds it now."""
        return [(*value, holder) for value, holder in self._moved() if holder is not None]

    def released(self) -> list[tuple[str, str]]:
        """Claims to remove: scope and digest."""
        return [value for value, holder in self._moved() if holder is None]

    def records(self) -> list[IdempotencyRecord]:
        """Idempotency records to write."""
        return [wish.idempotency for wish in self.accepted if wish.idempotency]

    def _moved(self) -> Iterable[tuple[tuple[str, str], str | None]]:
        return [(value, holder) for value, holder in self._claims.items() if self._claims_before.get(value) != holder]


def conflict(commit: Commit) -> Conflict:
    """The error of a commit whose stream is not where it should be."""
    return Conflict(commit.stream, commit.first_sequence_number - 1)
