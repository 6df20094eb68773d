"""The Protector's cache: bounded, and never older than its time to live."""

from __future__ import annotations

import pytest

from kiseki.kernel.personal import ERASED
from kiseki.security.cipher import DataKeyCipher
from kiseki.security.key_cache import CipherCache


@pytest.fixture
def cipher() -> DataKeyCipher:
    return DataKeyCipher("A-1", {"k1": bytes(32)})


def test_the_least_recently_used_is_dropped_above_capacity(cipher: DataKeyCipher) -> None:
    cache = CipherCache(capacity=2, ttl=300)
    cache.put("A-1", cipher, 0)
    cache.put("A-2", cipher, 0)
    assert cache.get("A-1", 1) is cipher
    cache.put("A-3", cipher, 1)
    assert [cache.get(subject, 1) is not None for subject in ("A-1", "A-2", "A-3")] == [True, False, True]
    assert len(cache) == 2


def test_use_does_not_lengthen_a_life(cipher: DataKeyCipher) -> None:
    cache = CipherCache(capacity=2, ttl=300)
    cache.put("A-1", cipher, 0)
    for now in (100, 200, 299.9):
        assert cache.get("A-1", now) is cipher
    assert cache.get("A-1", 300) is None
    assert len(cache) == 0


def test_nothing_lives_with_a_time_to_live_of_zero(cipher: DataKeyCipher) -> None:
    cache = CipherCache(capacity=2, ttl=0)
    cache.put("A-1", cipher, 5)
    assert cache.get("A-1", 5) is None


def test_erasures_are_remembered_and_subjects_forgotten(cipher: DataKeyCipher) -> None:
    cache = CipherCache(capacity=2, ttl=300)
    cache.put("A-1", cipher, 0)
    cache.put("A-1", ERASED, 0)
    assert cache.get("A-1", 0) == ERASED
    cache.drop("A-1")
    cache.drop("A-1")
    assert cache.get("A-1", 0) is None
