"""What tests of key stores share: a time, keys, and every method tried on a store that can't be used."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from kiseki.kernel.errors import KisekiError
from kiseki.security.key_store import KeyStore, Rewrapped, SubjectKeys, WrappedKey

__all__ = ["GONE", "NOW", "attempts", "key"]

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
GONE = SubjectKeys((), NOW)


def key(name: str) -> WrappedKey:
    return WrappedKey(name, name.encode() + bytes(range(256)))


async def attempts(store: KeyStore) -> list[str]:
    """The codes of the errors of all methods."""
    codes = []
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: store.load(["A-1"]),
        lambda: store.insert({"A-1": key("k1")}),
        lambda: store.erase("A-1", NOW),
        lambda: store.erasures(None),
        lambda: store.erasures(0),
        lambda: store.replace([Rewrapped("A-1", key("k1"), b"new")]),
        lambda: anext(store.scan(10)),
    ]
    for call in calls:
        with pytest.raises(KisekiError) as caught:
            await call()
        codes.append(caught.value.code)
        assert "A-1" not in str(caught.value)
        assert "\n" not in str(caught.value)
    return codes
