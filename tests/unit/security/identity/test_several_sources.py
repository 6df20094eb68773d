"""Keys from several places."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from kiseki.security.identity.key_sources import FixedKeys, KeysUnavailable
from kiseki.security.identity.keys import VerificationKey, verification_key
from kiseki.security.identity.several_sources import SeveralSources


def key(key_id: str | None) -> VerificationKey:
    return verification_key(generate_private_key(SECP256R1()).public_key(), key_id=key_id)


class Unread(FixedKeys):
    async def find(self, algorithm: str, key_id: str | None) -> tuple[VerificationKey, ...]:
        raise KeysUnavailable("not read yet")


async def test_a_key_that_is_named_goes_before_one_without_a_name() -> None:
    plain, named = key(None), key("a")
    sources = SeveralSources([FixedKeys([plain]), FixedKeys([named])])
    assert list(await sources.find("ES256", "a")) == [named]
    assert list(await sources.find("ES256", "b")) == [plain]
    assert set(await sources.find("ES256", None)) == {plain, named}
    assert list(await sources.find("RS256", "zz")) == []


async def test_what_can_not_be_read_hides_nothing_and_decides_nothing() -> None:
    plain, named = key(None), key("a")
    sources = SeveralSources([Unread([key("x")]), FixedKeys([plain, named])])
    assert list(await sources.find("ES256", "a")) == [named]
    assert set(await sources.find("ES256", None)) == {plain, named}
    with pytest.raises(KeysUnavailable):
        await sources.find("ES256", "b")
    with pytest.raises(KeysUnavailable):
        await SeveralSources([Unread([named])]).find("ES256", None)


async def test_few_are_tried() -> None:
    sources = SeveralSources([FixedKeys([key(None) for _ in range(4)]) for _ in range(3)])
    assert len(await sources.find("ES256", "b")) == 4
