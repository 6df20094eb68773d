"""Settings of master keys, and several of them at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from kiseki.kernel.errors import KisekiError
from kiseki.security.key_store import MemoryKeyStore, WrappedKey, wrap_context
from kiseki.security.master_key import LocalMasterKey, MasterKeyMissing, MasterKeyRefused
from kiseki.security.master_keys import MasterKeys, is_local, open_master_keys
from kiseki.security.rewrap import rewrap, survey
from tests.unit.security.fakes import MASTER

OTHER = bytes(range(32, 64))


def key_file(path: Path, key: bytes) -> Path:
    path.write_bytes(key)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("form", ["{}", "file:{}", "file://{}"])
async def test_a_path_in_every_form(tmp_path: Path, form: str) -> None:
    path = key_file(tmp_path / "master.key", MASTER)
    opened = await open_master_keys(form.format(path), default=tmp_path / "none")
    assert opened.key_id == LocalMasterKey(MASTER).key_id
    assert not (tmp_path / "none").exists()


async def test_without_a_setting_the_default_is_made(tmp_path: Path) -> None:
    first = await open_master_keys("", default=tmp_path / "master.key")
    assert (await open_master_keys("", default=tmp_path / "master.key", make=False)).key_id == first.key_id
    with pytest.raises(MasterKeyRefused):
        await open_master_keys("", default=tmp_path / "none", make=False)


async def test_a_previous_key_is_never_made(tmp_path: Path) -> None:
    """A mistyped name of the old one must not become a new key that reads nothing."""
    with pytest.raises(MasterKeyRefused):
        await open_master_keys("", previous=[str(tmp_path / "typo")], default=tmp_path / "master.key")
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize(
    "setting",
    [
        "aws-kms://",
        "aws-kms://alias/x",
        "aws-kms://?region=eu-west-1",
        "aws-kms://alias/x?region=evil.example",
        "aws-kms://alias/x?region=eu-west-1&region=us-east-1",
        "aws-kms://alias/x?region=eu-west-1&profile=x",
        "aws-kms://alias/x?region=eu-west-1&endpoint=ftp://x",
        "aws-kms://alias/x?region=eu-west-1#x",
        "aws-kms://alias/x y?region=eu-west-1",
        "aws-kms://alias/%00?region=eu-west-1",
        "awskms://alias/x",
        "vault://transit/x",
        "https://x/y",
        "file://relative",
        "vault-transit://transit/x",
    ],
)
async def test_what_names_no_master_key_is_refused_and_makes_no_file(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MasterKeyRefused) as refused:
        await open_master_keys(setting, default=tmp_path / "none")
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_which_are_local() -> None:
    assert is_local("")
    assert is_local("/keys/master.key")
    assert not is_local("aws-kms://alias/x?region=eu-west-1")
    assert not is_local("vault-transit://transit/x")


class Closing(LocalMasterKey):
    closed = 0

    async def close(self) -> None:
        type(self).closed += 1


async def test_the_current_one_wraps_and_each_reads_its_own() -> None:
    both = MasterKeys(LocalMasterKey(OTHER), previous=[LocalMasterKey(MASTER)])
    old = await LocalMasterKey(MASTER).wrap(b"old", b"here")
    new = await both.wrap(b"new", b"here")
    assert await both.unwrap(old, b"here") == b"old"
    assert await both.unwrap(new, b"here") == b"new"
    assert both.reads(LocalMasterKey(MASTER).key_id)
    assert not both.reads("local-0000000000000000")
    with pytest.raises(MasterKeyMissing, match="give the other in `master_keys_previous`") as missing:
        await MasterKeys(LocalMasterKey(OTHER)).unwrap(old, b"here")
    assert LocalMasterKey(MASTER).key_id in str(missing.value)
    with pytest.raises(KisekiError):
        await both.unwrap(new, b"there")


async def test_all_are_closed() -> None:
    async with MasterKeys(Closing(OTHER), previous=[Closing(MASTER)]):
        pass
    assert Closing.closed == 2


async def test_a_survey_counts_by_master_key_and_tells_progress() -> None:
    store, old, new = MemoryKeyStore(), LocalMasterKey(MASTER), LocalMasterKey(OTHER)
    for number in range(25):
        subject = f"A-{number}"
        wrapper = old if number < 20 else new
        wrapped = await wrapper.wrap(b"k" * 32, wrap_context(subject, "k"))
        await store.insert({subject: WrappedKey("k", wrapped)})
    assert await survey(store, page=10) == {old.key_id: 20, new.key_id: 5}
    seen: list[int] = []
    both = MasterKeys(new, previous=[old])
    assert await rewrap(store, both, page=10, on_progress=seen.append) == 20
    assert seen == [10, 20]
    assert await survey(store) == {new.key_id: 25}
