"""The port `KeyStore`: where wrapped data keys are kept, apart from journal and backups; and one in memory.

Used by the Protector and by re-wrapping. Nothing here knows a key in the clear.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple, Protocol

from kiseki.kernel.errors import KisekiError, Unavailable

__all__ = [
    "DIGEST_SUBJECT",
    "Erasures",
    "KeyStore",
    "KeyStoreCorrupt",
    "KeyStoreUnavailable",
    "MemoryKeyStore",
    "Rewrapped",
    "SubjectKeys",
    "WrappedKey",
    "wrap_context",
]

DIGEST_SUBJECT: Final = "$digest"
"""Holds the root of keyed hashes like the key of a subject; no stream has such a name."""


class KeyStoreUnavailable(Unavailable):
    """The key store can't be used now. What was to be written may or may not be; the same call again is safe."""


class KeyStoreCorrupt(KisekiError):
    """The key store does not hold what was written. Never ignored: stop, restore."""

    code = "KEY_STORE_CORRUPT"


class WrappedKey:
    """A data key, wrapped by a master key."""

    __slots__ = ("key_id", "wrapped")

    def __init__(self, key_id: str, wrapped: bytes) -> None:
        self.key_id = key_id
        self.wrapped = wrapped

    def __repr__(self) -> str:
        return f"WrappedKey({self.key_id!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WrappedKey):
            return NotImplemented
        return (self.key_id, self.wrapped) == (other.key_id, other.wrapped)

    def __hash__(self) -> int:
        return hash((self.key_id, self.wrapped))


class SubjectKeys(NamedTuple):
    """What the store knows of a subject: its keys, oldest first, or when it was erased."""

    keys: tuple[WrappedKey, ...]
    erased_at: datetime | None = None


class Erasures(NamedTuple):
    """The subjects erased after a mark, and the mark to ask from next."""

    subjects: tuple[str, ...]
    mark: int


class Rewrapped(NamedTuple):
    """One key of a subject as it was wrapped, and its new wrapped form."""

    subject: str
    old: WrappedKey
    wrapped: bytes


class KeyStore(Protocol):
    """Keeps the wrapped keys of subjects, and the tombstones of those erased.

    Any number of processes may use one store. Every method raises KeyStoreUnavailable when the store can't be used
    now and KeyStoreCorrupt when it is damaged.
    """

    async def load(self, subjects: Collection[str]) -> Mapping[str, SubjectKeys]:
        """What is known of each subject; unknown ones are left out."""
        ...

    async def insert(self, keys: Mapping[str, WrappedKey]) -> Mapping[str, SubjectKeys]:
        """Makes each the first key of its subject, unless the subject has a key or was erased; durable when this
        returns. Returns what the store then knows of each subject: who was there first wins.
        """
        ...

    async def erase(self, subject: str, at: datetime) -> None:
        """Destroys the subject's keys and leaves a tombstone, durable when this returns; an unknown subject gets one
        too. No call gives the keys any more; what a store's files keep, and for how long, its module says. Again is
        fine and keeps the first time (UTC).
        """
        ...

    async def erasures(self, after: int | None) -> Erasures:
        """The subjects erased after a mark; with None only the mark of now."""
        ...

    def scan(self, page: int) -> AsyncIterator[Sequence[tuple[str, WrappedKey]]]:
        """Every key of every subject in pages of at most so many, for re-wrapping."""
        ...

    async def replace(self, changes: Sequence[Rewrapped]) -> int:
        """Puts new wrapped forms in place of old ones that are still there, durable when this returns; how many. What
        a store's files keep of the old ones, its module says.
        """
        ...

    async def tidy(self) -> None:
        """Takes away what destroyed keys have left where they were, as far as that is possible by now. Raises nothing
        for what is left: it is called again and again."""
        ...

    async def close(self) -> None:
        """Lets go of files and connections; again is fine."""
        ...


def wrap_context(subject: str, key_id: str) -> bytes:
    """What a wrapped key is bound to: it can't be moved to another subject."""
    return f"subject-key|{subject}|{key_id}".encode()


class MemoryKeyStore:
    """A KeyStore in memory, for tests and for playing: keys are gone with the process, and no method suspends."""

    def __init__(self) -> None:
        self._keys: dict[str, tuple[WrappedKey, ...]] = {}
        self._erased: dict[str, datetime] = {}

    async def load(self, subjects: Collection[str]) -> dict[str, SubjectKeys]:
        """As KeyStore."""
        return self._known(subjects)

    async def insert(self, keys: Mapping[str, WrappedKey]) -> dict[str, SubjectKeys]:
        """As KeyStore."""
        for subject, key in keys.items():
            if subject not in self._erased:
                self._keys.setdefault(subject, (key,))
        return self._known(keys)

    async def erase(self, subject: str, at: datetime) -> None:
        """As KeyStore."""
        self._keys.pop(subject, None)
        self._erased.setdefault(subject, at.astimezone(UTC))

    async def erasures(self, after: int | None) -> Erasures:
        """As KeyStore."""
        mark = len(self._erased)
        return Erasures(tuple(self._erased)[mark if after is None else after :], mark)

    async def scan(self, page: int) -> AsyncIterator[Sequence[tuple[str, WrappedKey]]]:
        """As KeyStore."""
        everything = [(subject, key) for subject, keys in self._keys.items() for key in keys]
        for start in range(0, len(everything), page):
            yield everything[start : start + page]

    async def replace(self, changes: Sequence[Rewrapped]) -> int:
        """As KeyStore."""
        replaced = 0
        for change in changes:
            keys = self._keys.get(change.subject, ())
            new = WrappedKey(change.old.key_id, change.wrapped)
            replaced += keys.count(change.old)
            if keys:
                self._keys[change.subject] = tuple(new if key == change.old else key for key in keys)
        return replaced

    async def tidy(self) -> None:
        """As KeyStore: nothing to do."""

    async def close(self) -> None:
        """As KeyStore: nothing to do."""

    def _known(self, subjects: Iterable[str]) -> dict[str, SubjectKeys]:
        known = {}
        for subject in subjects:
            if subject in self._erased:
                known[subject] = SubjectKeys((), self._erased[subject])
            elif subject in self._keys:
                known[subject] = SubjectKeys(self._keys[subject])
        return known
