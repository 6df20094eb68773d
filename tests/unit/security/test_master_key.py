"""Master keys: a file that is made once and refused when it is not safe, and what is wrapped with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiseki.kernel.errors import KisekiError
from kiseki.security.master_key import (
    LocalMasterKey,
    MasterKeyMissing,
    MasterKeyRefused,
    WrappedKeyBroken,
    wrapped_by,
)
from tests.unit.security.fakes import MASTER

OTHER = bytes(range(32, 64))
FROZEN = bytes.fromhex(
    "6c6f63616c2d3162303862623034313330323737396200000102030405060708090a0b"
    "3f082e07e6fa7fc9c4b5ea8b3b7fcc4370b26ec7e952085ba0cd06439bd5c05ed291ca75f3f970782ef3fe37b0cc37b6"
)


def write(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_the_first_start_makes_a_key_that_stays(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    made = LocalMasterKey.load_or_create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size == 32
    assert path.stat().st_nlink == 1
    assert os.listdir(tmp_path) == ["master.key"], "nothing else is left, least of all a copy"
    assert LocalMasterKey.load_or_create(path).key_id == LocalMasterKey.load(path).key_id == made.key_id


def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        LocalMasterKey.load_or_create(tmp_path / "master.key")
    finally:
        os.umask(before)
    assert (tmp_path / "master.key").stat().st_mode & 0o777 == 0o600


def test_of_starts_at_once_one_makes_the_key_and_all_have_it(tmp_path: Path) -> None:
    together = Barrier(8)

    def start(round_number: int) -> str:
        together.wait()
        return LocalMasterKey.load_or_create(tmp_path / f"master-{round_number}.key").key_id

    with ThreadPoolExecutor(8) as threads:
        for round_number in range(20):
            assert len(set(threads.map(start, [round_number] * 8))) == 1
    assert len(os.listdir(tmp_path)) == 20


@pytest.mark.parametrize("length", [0, 16, 31, 33, 44, 65])
def test_a_file_of_another_length_is_refused(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "master.key", os.urandom(length))
    for load in (LocalMasterKey.load, LocalMasterKey.load_or_create):
        with pytest.raises(MasterKeyRefused, match=f"must hold 32 bytes, not {length}"):
            load(path)
    assert path.stat().st_size == length, "a file that is there is never changed"


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o604, 0o644, 0o660, 0o610])
def test_a_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "master.key", MASTER, mode)
    for load in (LocalMasterKey.load, LocalMasterKey.load_or_create):
        with pytest.raises(MasterKeyRefused, match="chmod 600"):
            load(path)


def test_a_file_behind_a_link_is_fine(tmp_path: Path) -> None:
    """Kubernetes mounts secrets as links."""
    (tmp_path / "link").symlink_to(write(tmp_path / "master.key", MASTER, 0o400))
    assert LocalMasterKey.load(tmp_path / "link").key_id == LocalMasterKey(MASTER).key_id


def missing(path: Path) -> LocalMasterKey:
    return LocalMasterKey.load(path / "none.key")


def directory(path: Path) -> LocalMasterKey:
    return LocalMasterKey.load_or_create(path)


def nowhere(path: Path) -> LocalMasterKey:
    return LocalMasterKey.load_or_create(path / "none" / "master.key")


def previous(path: Path) -> LocalMasterKey:
    return LocalMasterKey.load(write(path / "master.key", MASTER), previous=[write(path / "old.key", b"short")])


@pytest.mark.parametrize("load", [missing, directory, nowhere, previous])
def test_what_can_not_be_used_is_refused_in_one_line(tmp_path: Path, load: Callable[[Path], LocalMasterKey]) -> None:
    with pytest.raises(MasterKeyRefused) as refused:
        load(tmp_path)
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.code == "MASTER_KEY_REFUSED"


@given(plain=st.binary(max_size=100), context=st.binary(max_size=60), other=st.binary(max_size=60))
async def test_what_is_wrapped_unwraps_in_its_context_only(plain: bytes, context: bytes, other: bytes) -> None:
    master = LocalMasterKey(MASTER)
    wrapped = await master.wrap(plain, context)
    assert await master.unwrap(wrapped, context) == plain
    assert wrapped_by(wrapped) == master.key_id
    if other != context:
        with pytest.raises(WrappedKeyBroken):
            await master.unwrap(wrapped, other)


async def test_what_earlier_versions_wrapped_stays_readable() -> None:
    assert await LocalMasterKey(MASTER).unwrap(FROZEN, b"here") == bytes(32)


async def test_changing_any_byte_is_noticed() -> None:
    master = LocalMasterKey(MASTER)
    wrapped = await master.wrap(OTHER, b"here")
    for at in range(len(wrapped)):
        for bit in range(8):
            altered = bytearray(wrapped)
            altered[at] ^= 1 << bit
            with pytest.raises(KisekiError):
                await master.unwrap(bytes(altered), b"here")
        with pytest.raises(KisekiError):
            await master.unwrap(wrapped[:at], b"here")


async def test_a_rotated_master_key_still_reads_what_the_old_one_wrapped() -> None:
    wrapped = await LocalMasterKey(MASTER).wrap(b"data key", b"here")
    rotated = LocalMasterKey(OTHER, previous=[MASTER])
    assert await rotated.unwrap(wrapped, b"here") == b"data key"
    assert wrapped_by(await rotated.wrap(b"data key", b"here")) == LocalMasterKey(OTHER).key_id


async def test_a_missing_master_key_is_named() -> None:
    old, new = LocalMasterKey(MASTER), LocalMasterKey(OTHER)
    with pytest.raises(MasterKeyMissing) as raised:
        await new.unwrap(await old.wrap(b"data key", b"here"), b"here")
    assert old.key_id in str(raised.value)
    assert new.key_id in str(raised.value)


@pytest.mark.parametrize("wrapped", [b"", b"\0", b"no end", b"two words\0x", "kéy\0x".encode(), b"line\nbreak\0x"])
async def test_what_names_no_master_key_is_refused(wrapped: bytes) -> None:
    with pytest.raises(WrappedKeyBroken):
        await LocalMasterKey(MASTER).unwrap(wrapped, b"here")


def test_the_id_and_the_repr_tell_nothing_of_the_key() -> None:
    master = LocalMasterKey(MASTER, previous=[OTHER])
    for secret in (MASTER, OTHER):
        assert secret not in vars(master).values()
        assert secret[:8].hex() not in master.key_id
        assert secret.hex() not in repr(master)
