"""The bounded cache of the Protector: ciphers of subjects, and which subjects are known to be erased."""

from __future__ import annotations

from collections import OrderedDict

from kiseki.kernel.personal import Erased
from kiseki.kernel.ports import SubjectCipher

__all__ = ["CipherCache"]


class CipherCache:
    """Ciphers in order of use. An entry lives `ttl` seconds from when its keys were read, however often it is used:
    so long may another process's erasure stay unknown at most."""

    def __init__(self, *, capacity: int, ttl: float) -> None:
        self._entries: OrderedDict[str, tuple[SubjectCipher | Erased, float]] = OrderedDict()
        self._capacity = capacity
        self._ttl = ttl

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, subject: str, now: float) -> SubjectCipher | Erased | None:
        """What is known of a subject, unless it is too old."""
        entry = self._entries.get(subject)
        if entry is None:
            return None
        if entry[1] <= now:
            del self._entries[subject]
            return None
        self._entries.move_to_end(subject)
        return entry[0]

    def put(self, subject: str, cipher: SubjectCipher | Erased, read_at: float) -> None:
        """Remembers what was read at a time; drops the least recently used above capacity."""
        self._entries[subject] = (cipher, read_at + self._ttl)
        self._entries.move_to_end(subject)
        if len(self._entries) > self._capacity:
            self._entries.popitem(last=False)

    def expire(self, now: float) -> None:
        """Drops what is too old, also what nobody asks for any more: a key is not to stay in memory longer."""
        for subject in [subject for subject, (_, until) in self._entries.items() if until <= now]:
            del self._entries[subject]

    def drop(self, subject: str) -> None:
        """Forgets a subject."""
        self._entries.pop(subject, None)
