"""The cipher of one subject: what is sealed opens only where it was sealed, and only unaltered."""

from __future__ import annotations

import base64
import re
import string

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from kiseki.kernel.errors import KisekiError
from kiseki.kernel.ports import SubjectKeyMissing
from kiseki.security.cipher import DataKeyCipher, SealBroken

HANAKO = "UserAccount-hanako"
OLD, NEW = bytes(range(32)), bytes(range(32, 64))
CONTEXT = b"event|UserAccount-hanako|01ARZ3NDEKTSV4RRFFQ69G5FAV|name"


@pytest.fixture
def cipher() -> DataKeyCipher:
    return DataKeyCipher(HANAKO, {"k1": OLD})


@given(plaintext=st.binary(max_size=300), context=st.binary(max_size=100))
def test_what_is_sealed_opens_again(plaintext: bytes, context: bytes) -> None:
    cipher = DataKeyCipher(HANAKO, {"k1": OLD})
    sealed = cipher.seal(plaintext, context)
    assert cipher.open(sealed, context) == plaintext
    assert re.fullmatch(r"k1\.[A-Za-z0-9_-]+", sealed)


@given(context=st.binary(max_size=100), other=st.binary(max_size=100))
def test_it_opens_in_no_other_context(context: bytes, other: bytes) -> None:
    cipher = DataKeyCipher(HANAKO, {"k1": OLD})
    sealed = cipher.seal(b"Hanako", context)
    if other != context:
        with pytest.raises(SealBroken):
            cipher.open(sealed, other)


def test_the_format_is_aes_256_gcm_with_the_nonce_in_front(cipher: DataKeyCipher) -> None:
    key_id, _, text = cipher.seal(b"Hanako", CONTEXT).partition(".")
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    assert key_id == "k1"
    assert len(raw) == 12 + 6 + 16
    assert AESGCM(OLD).decrypt(raw[:12], raw[12:], b"kiseki-sealed-1|" + CONTEXT) == b"Hanako"


def test_what_earlier_versions_sealed_stays_readable(cipher: DataKeyCipher) -> None:
    stored = "k1.AAECAwQFBgcICQoLD2O4eq6KBZ_ayll7UUasvxanWfb9Pg"
    assert cipher.open(stored, CONTEXT) == b"Hanako"


def test_changing_any_character_is_noticed(cipher: DataKeyCipher) -> None:
    sealed = cipher.seal(b"Hanako", CONTEXT)
    for at in range(len(sealed)):
        for character in string.ascii_letters + string.digits + "-_+/=. \n\0é":
            if character != sealed[at]:
                with pytest.raises(KisekiError):
                    cipher.open(sealed[:at] + character + sealed[at + 1 :], CONTEXT)


@pytest.mark.parametrize("plaintext", [b"", b"H", b"Ha", b"Han"])
def test_adding_and_removing_characters_is_noticed(cipher: DataKeyCipher, plaintext: bytes) -> None:
    sealed = cipher.seal(plaintext, CONTEXT)
    for extra in ("A", "=", "==", "\n", " ", ".", "\0", "é", "\ud800"):
        for altered in (sealed + extra, extra + sealed, sealed[:3] + extra + sealed[3:]):
            with pytest.raises(KisekiError):
                cipher.open(altered, CONTEXT)
    for end in range(len(sealed)):
        with pytest.raises(KisekiError):
            cipher.open(sealed[:end], CONTEXT)


@pytest.mark.parametrize("value", ["", ".", "k1", "k1.", "k1.AAAA", None, 5, [], {}])
def test_what_was_never_sealed_is_refused(cipher: DataKeyCipher, value: object) -> None:
    with pytest.raises(SealBroken):
        cipher.open(value, CONTEXT)  # type: ignore[arg-type]


def test_another_subjects_data_does_not_open(cipher: DataKeyCipher) -> None:
    taro = DataKeyCipher("UserAccount-taro", {"k2": NEW})
    with pytest.raises(SubjectKeyMissing):
        cipher.open(taro.seal(b"Taro", CONTEXT), CONTEXT)
    same_id = DataKeyCipher("UserAccount-taro", {"k1": NEW})
    with pytest.raises(SealBroken):
        cipher.open(same_id.seal(b"Taro", CONTEXT), CONTEXT)


def test_the_newest_key_seals_and_all_open() -> None:
    before = DataKeyCipher(HANAKO, {"k1": OLD})
    after = DataKeyCipher(HANAKO, {"k1": OLD, "k2": NEW})
    assert after.open(before.seal(b"Hanako", CONTEXT), CONTEXT) == b"Hanako"
    sealed = after.seal(b"Hanako", CONTEXT)
    assert sealed.startswith("k2.")
    assert after.open(sealed, CONTEXT) == b"Hanako"


def test_no_two_seals_are_alike(cipher: DataKeyCipher) -> None:
    assert len({cipher.seal(b"Hanako", CONTEXT)[:20] for _ in range(2_000)}) == 2_000


def test_errors_tell_where_but_nothing_of_what_was_sealed(cipher: DataKeyCipher) -> None:
    sealed = cipher.seal(b"Hanako", CONTEXT)
    with pytest.raises(SealBroken) as broken:
        cipher.open(sealed, b"elsewhere")
    message = str(broken.value)
    assert HANAKO in message
    assert sealed not in message
    assert broken.value.code == "SEAL_BROKEN"
    assert broken.value.__suppress_context__, "the library's error is not shown"
    assert "\n" not in message


def test_keys_are_in_no_repr(cipher: DataKeyCipher) -> None:
    assert repr(OLD) not in repr(cipher)
    assert all(getattr(cipher, name) != OLD for name in DataKeyCipher.__slots__)
