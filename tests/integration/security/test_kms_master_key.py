"""A master key in KMS of an emulator: wrapping in contexts, keys of subjects in every store, and KMS going away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from kiseki.clients.aws_json import AwsJsonClient
from kiseki.clients.kms import KmsClient
from kiseki.kernel.errors import KisekiError, Unavailable
from kiseki.kernel.personal import ERASED
from kiseki.security.key_store import KeyStore, Rewrapped, wrap_context
from kiseki.security.kms_master_key import KmsMasterKey
from kiseki.security.master_key import (
    LocalMasterKey,
    MasterKeyMissing,
    MasterKeyRefused,
    MasterKeyUnavailable,
    WrappedKeyBroken,
    wrapped_by,
)
from kiseki.security.master_keys import MasterKeys, open_master_keys
from kiseki.security.protector import KeyProtector
from kiseki.security.rewrap import rewrap, survey
from tests.servers.emulator import REGION, AwsEmulator, NoEmulator
from tests.unit.security.fakes import MASTER, FakeClock

SUBJECT = "UserAccount-01J00000000000000000000000"
NOWHERE = Path("/nonexistent/master.key")


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


@pytest.fixture
async def admin(aws_endpoint: str) -> AsyncIterator[AwsJsonClient]:
    """KMS, for what only people do to keys."""
    client = calls(aws_endpoint)
    yield client
    await client.close()


def calls(endpoint: str, *, region: str = REGION, service: str = "kms", target: str = "TrentService") -> AwsJsonClient:
    return AwsJsonClient(service=service, target=target, region=region, endpoint=endpoint)


async def new_key(admin: AwsJsonClient, **options: object) -> str:
    return str((await admin.call("CreateKey", options))["KeyMetadata"]["Arn"])


def setting(endpoint: str, key: str, region: str = REGION) -> str:
    return f"aws-kms://{key}?region={region}&endpoint={endpoint}"


@pytest.fixture
async def arn(admin: AwsJsonClient) -> str:
    return await new_key(admin)


@pytest.fixture
async def master(aws_endpoint: str, arn: str) -> AsyncIterator[MasterKeys]:
    async with await open_master_keys(setting(aws_endpoint, arn), default=NOWHERE) as opened:
        yield opened


async def test_what_is_wrapped_unwraps_in_its_context_only(master: MasterKeys, arn: str) -> None:
    wrapped = await master.wrap(b"k" * 32, b"subject-key|A-1|k1")
    assert wrapped_by(wrapped) == master.key_id == arn
    assert b"k" * 32 not in wrapped
    assert await master.unwrap(wrapped, b"subject-key|A-1|k1") == b"k" * 32
    for other in (b"subject-key|A-2|k1", b"subject-key|A-1|k2", b"", b"subject-key|A-1|k1 "):
        with pytest.raises(WrappedKeyBroken):
            await master.unwrap(wrapped, other)


async def test_a_cut_or_foreign_wrapped_key_is_refused(master: MasterKeys, arn: str) -> None:
    """That KMS notices altered bytes is tried with a stand-in: this emulator's cipher does not authenticate."""
    wrapped = await master.wrap(b"k" * 32, b"here")
    for cut in (0, 5, len(arn), len(arn) + 1, len(arn) + 40):
        with pytest.raises(WrappedKeyBroken):
            await master.unwrap(wrapped[:cut], b"here")
    with pytest.raises(MasterKeyMissing):
        await master.unwrap(wrapped.replace(arn[-4:].encode(), b"zzzz", 1), b"here")


async def test_an_alias_is_the_key_behind_it(admin: AwsJsonClient, aws_endpoint: str, arn: str) -> None:
    alias = f"alias/kiseki-{arn[-12:]}"
    await admin.call("CreateAlias", {"AliasName": alias, "TargetKeyId": arn})
    async with await open_master_keys(setting(aws_endpoint, alias), default=NOWHERE) as old:
        wrapped = await old.wrap(b"plain", b"here")
        assert old.key_id == arn
        other = await new_key(admin)
        await admin.call("UpdateAlias", {"AliasName": alias, "TargetKeyId": other})
        assert wrapped_by(await old.wrap(b"plain", b"here")) == arn, "a process keeps to the key that it began with"
    async with await open_master_keys(setting(aws_endpoint, alias), default=NOWHERE) as moved:
        assert moved.key_id == other
        with pytest.raises(MasterKeyMissing) as missing:
            await moved.unwrap(wrapped, b"here")
        assert arn in str(missing.value)
        assert other in str(missing.value)
    with_old = await open_master_keys(
        setting(aws_endpoint, alias), previous=[setting(aws_endpoint, arn)], default=NOWHERE
    )
    async with with_old:
        assert await with_old.unwrap(wrapped, b"here") == b"plain"


@pytest.mark.parametrize("key", ["alias/none", "00000000-0000-0000-0000-000000000000"])
async def test_a_key_that_is_not_there_is_named_as_missing(aws_endpoint: str, key: str) -> None:
    with pytest.raises(MasterKeyMissing, match="no such key"):
        await open_master_keys(setting(aws_endpoint, key), default=NOWHERE)


async def test_a_key_of_another_region_is_not_there(aws_endpoint: str, arn: str) -> None:
    with pytest.raises(KisekiError):
        await open_master_keys(setting(aws_endpoint, arn.rpartition("/")[2], "us-east-1"), default=NOWHERE)


async def test_a_key_that_does_not_encrypt_is_refused(admin: AwsJsonClient, aws_endpoint: str) -> None:
    signing = await new_key(admin, KeySpec="HMAC_256", KeyUsage="GENERATE_VERIFY_MAC")
    with pytest.raises(MasterKeyRefused, match="symmetric"):
        await open_master_keys(setting(aws_endpoint, signing), default=NOWHERE)


async def test_a_disabled_key_is_waited_for(
    admin: AwsJsonClient, aws_endpoint: str, arn: str, master: MasterKeys
) -> None:
    """People can enable it again: what waits for a key must not be parked as if it were broken."""
    wrapped = await master.wrap(b"plain", b"here")
    await admin.call("DisableKey", {"KeyId": arn})
    for attempt in (
        lambda: master.unwrap(wrapped, b"here"),
        lambda: master.wrap(b"plain", b"here"),
        lambda: open_master_keys(setting(aws_endpoint, arn), default=NOWHERE),
    ):
        with pytest.raises(MasterKeyUnavailable, match="enable it"):
            await attempt()
    await admin.call("EnableKey", {"KeyId": arn})
    assert await master.unwrap(wrapped, b"here") == b"plain"
    await admin.call("ScheduleKeyDeletion", {"KeyId": arn, "PendingWindowInDays": 7})
    with pytest.raises(MasterKeyUnavailable, match="deletion"):
        await master.unwrap(wrapped, b"here")


async def protected(store: KeyStore, master: MasterKeys, clock: FakeClock) -> KeyProtector:
    return await KeyProtector.open(store=store, wrapper=master, clock=clock, ttl=300)


async def test_keys_of_subjects_end_to_end(
    open_store: Callable[[], Awaitable[KeyStore]], master: MasterKeys, arn: str
) -> None:
    """On every key store: sealed by one process, opened by another, erased, and moved to another subject in vain."""
    clock = FakeClock()
    one = await protected(await open_store(), master, clock)
    subjects = [f"UserAccount-{number:026}" for number in range(60)]
    sealed = {name: cipher.seal(name.encode(), b"f") for name, cipher in (await one.ensure(subjects)).items()}
    second_store = await open_store()
    other = await protected(second_store, master, clock)
    ciphers = await other.ciphers(subjects)
    for name in subjects:
        cipher = ciphers[name]
        assert cipher is not ERASED
        assert cipher.open(sealed[name], b"f") == name.encode()  # type: ignore[union-attr]
    assert other.digest("s", "v") == one.digest("s", "v")
    assert await survey(second_store) == {arn: 61}
    await other.erase(subjects[0])
    assert (await other.ciphers(subjects[:1]))[subjects[0]] is ERASED
    # Somebody who can write to the key store gives one person's wrapped key to another.
    stored = await second_store.load(subjects[1:3])
    (his,), (hers,) = (stored[name].keys for name in subjects[1:3])
    await second_store.replace([Rewrapped(subjects[1], his, hers.wrapped)])
    with pytest.raises(WrappedKeyBroken):
        await (await protected(await open_store(), master, clock)).ciphers([subjects[1]])


async def test_rotation_from_a_file_to_kms_keeps_every_key(
    open_store: Callable[[], Awaitable[KeyStore]], aws_endpoint: str, arn: str, tmp_path: Path
) -> None:
    clock, store = FakeClock(), await open_store()
    path = tmp_path / "master.key"
    path.write_bytes(MASTER)
    path.chmod(0o600)
    subjects = [f"UserAccount-{number:026}" for number in range(40)]
    async with await open_master_keys(str(path), default=NOWHERE) as old:
        before = await protected(store, old, clock)
        sealed = {name: cipher.seal(b"data", b"f") for name, cipher in (await before.ensure(subjects)).items()}
        digest = before.digest("s", "v")
    local = LocalMasterKey(MASTER).key_id
    seen: list[int] = []
    async with await open_master_keys(setting(aws_endpoint, arn), previous=[str(path)], default=NOWHERE) as both:
        between = await protected(store, both, clock)
        await between.ensure(["UserAccount-new"])
        assert await survey(store) == {local: 41, arn: 1}
        assert await rewrap(store, both, page=10, on_progress=seen.append) == 41
        assert seen == sorted(seen)
        assert seen[-1] == 41
        assert await survey(store) == {arn: 42}
        assert await rewrap(store, both) == 0
    async with await open_master_keys(setting(aws_endpoint, arn), default=NOWHERE) as alone:
        after = await protected(await open_store(), alone, clock)
        assert after.digest("s", "v") == digest
        for name, cipher in (await after.ensure(subjects)).items():
            assert cipher.open(sealed[name], b"f") == b"data"


async def test_a_page_of_unknown_subjects_does_not_ask_one_after_the_other(
    master: MasterKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kiseki.security.key_store import MemoryKeyStore

    clock, store = FakeClock(), MemoryKeyStore()
    subjects = [f"UserAccount-{number:026}" for number in range(200)]
    await (await protected(store, master, clock)).ensure(subjects)
    running = most = total = 0
    plain = KmsClient.decrypt

    async def watched(self: KmsClient, key: str, ciphertext: bytes, context: dict[str, str]) -> bytes:
        nonlocal running, most, total
        running += 1
        total += 1
        most = max(most, running)
        try:
            return await plain(self, key, ciphertext, context)
        finally:
            running -= 1

    monkeypatch.setattr(KmsClient, "decrypt", watched)
    await (await protected(store, master, clock)).ciphers(subjects)
    assert total == 201
    assert 8 <= most <= 32


async def test_kms_going_away(tmp_path: Path) -> None:
    """What is in memory goes on until its time is up; what is not says so in bounded time, also when KMS hangs."""
    from kiseki.security.sqlite_key_store import SqliteKeyStore

    try:
        emulator = AwsEmulator()
        emulator.__enter__()
    except NoEmulator as problem:
        pytest.skip(f"AWS tests need the emulator: {problem}")
    clock, store = FakeClock(), await SqliteKeyStore.open(tmp_path / "keys.sqlite")
    try:
        admin = calls(emulator.endpoint)
        arn = await new_key(admin)
        await admin.close()
        client = KmsClient(region=REGION, endpoint=emulator.endpoint, deadline=1.0)
        master = MasterKeys(await KmsMasterKey.open(client, arn))
        protector = await protected(store, master, clock)
        sealed = (await protector.ensure([SUBJECT]))[SUBJECT].seal(b"data", b"f")

        emulator.freeze()
        assert (await protector.ensure([SUBJECT]))[SUBJECT].open(sealed, b"f") == b"data"
        began = time.monotonic()
        with pytest.raises(Unavailable):
            await protector.ensure(["UserAccount-new"])
        clock.advance(301)
        with pytest.raises(MasterKeyUnavailable):
            await protector.ciphers([SUBJECT])
        assert time.monotonic() - began < 10
        emulator.thaw()
        async with asyncio.timeout(30):
            while True:  # the circuit closes by itself
                try:
                    cipher = (await protector.ensure([SUBJECT]))[SUBJECT]
                    break
                except Unavailable as problem:
                    await asyncio.sleep(0.05 * problem.retry_after)
        assert cipher.open(sealed, b"f") == b"data"

        emulator.halt()
        clock.advance(301)
        with pytest.raises(MasterKeyUnavailable) as gone:
            await protector.ciphers([SUBJECT])
        assert "\n" not in str(gone.value)
        with pytest.raises(MasterKeyUnavailable):
            await open_master_keys(setting(emulator.endpoint, arn), default=NOWHERE)
        await master.close()
    finally:
        emulator.stop()
        await store.close()


async def test_nothing_of_a_context_reaches_kms_in_the_clear(
    aws_endpoint: str, arn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encryption context is logged by AWS."""
    sent: list[object] = []
    plain = AwsJsonClient.call

    async def watched(self: AwsJsonClient, operation: str, request: dict[str, object]) -> dict[str, object]:
        sent.append(request)
        return await plain(self, operation, request)

    monkeypatch.setattr(AwsJsonClient, "call", watched)
    async with await open_master_keys(setting(aws_endpoint, arn), default=NOWHERE) as master:
        context = wrap_context(SUBJECT, "k1")
        await master.unwrap(await master.wrap(b"plain", context), context)
    assert SUBJECT not in repr(sent)
    assert all(isinstance(each, dict) and list(each["EncryptionContext"]) == ["kiseki-context"] for each in sent)
    assert all(isinstance(each, dict) and each["KeyId"] == arn for each in sent), "decrypting names the key too"
    assert len(sent) == 4
