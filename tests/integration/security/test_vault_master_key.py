"""A master key in the transit engine of a real server: contexts, versions, policies, batches, and Vault going away."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kiseki.clients.vault import VaultClient
from kiseki.kernel.errors import KisekiError, Unavailable
from kiseki.security.key_store import KeyStore, MemoryKeyStore, Rewrapped
from kiseki.security.master_key import (
    MasterKeyMissing,
    MasterKeyRefused,
    MasterKeyUnavailable,
    WrappedKeyBroken,
    wrapped_by,
)
from kiseki.security.master_keys import MasterKeys, open_master_keys
from kiseki.security.protector import KeyProtector
from kiseki.security.rewrap import rewrap, survey
from kiseki.security.vault_master_key import VaultMasterKey
from tests.servers.vault import NoVault, VaultServer
from tests.unit.security.fakes import FakeClock

SUBJECT = "UserAccount-01J00000000000000000000000"
NOWHERE = Path("/nonexistent/master.key")


@pytest.fixture(scope="module")
def vault() -> Iterator[VaultServer]:
    try:
        server = VaultServer()
        server.__enter__()
    except NoVault as problem:
        pytest.skip(f"Vault tests need a server: {problem}")
    try:
        server.ask("POST", "sys/mounts/transit", {"type": "transit"})
        server.ask("POST", "sys/mounts/team/transit", {"type": "transit"})
        yield server
    finally:
        server.stop()


def new_key(vault: VaultServer, mount: str = "transit", **options: object) -> str:
    name = f"k{secrets.token_hex(4)}"
    vault.ask("POST", f"{mount}/keys/{name}", {"type": "aes256-gcm96", **options})
    return name


def policy(key: str, mount: str = "transit") -> str:
    """The least that a master key needs."""
    return "\n".join(
        f'path "{mount}/{operation}/{key}" {{ capabilities = ["update"] }}' for operation in ("encrypt", "decrypt")
    )


@pytest.fixture
def key(vault: VaultServer) -> str:
    return new_key(vault)


@pytest.fixture
def client(vault: VaultServer, tmp_path: Path) -> Callable[..., VaultClient]:
    """Clients with a token of a policy, root's unless given."""

    def make(token: str = "", **options: float) -> VaultClient:
        file = tmp_path / f"token-{secrets.token_hex(4)}"
        file.write_text((token or vault.token) + "\n")
        return VaultClient(vault.address, token_file=file, **options)  # type: ignore[arg-type]

    return make


async def opened(client: Callable[..., VaultClient], key: str, mount: str = "transit", token: str = "") -> MasterKeys:
    return await open_master_keys(f"vault-transit://{mount}/{key}", default=NOWHERE, vault=lambda: client(token))


@pytest.mark.parametrize("mount", ["transit", "team/transit"])
async def test_the_least_policy_is_enough(vault: VaultServer, client: Callable[..., VaultClient], mount: str) -> None:
    key = new_key(vault, mount)
    token = vault.token_for(policy(key, mount))
    async with await opened(client, key, mount, token) as master:
        wrapped = await master.wrap(b"k" * 32, b"here")
        assert wrapped_by(wrapped) == master.key_id == f"vault-transit:{mount}/{key}:v1"
        assert await master.unwrap(wrapped, b"here") == b"k" * 32
        for other in (b"there", b"", b"here "):
            with pytest.raises(WrappedKeyBroken):
                await master.unwrap(wrapped, other)


async def test_every_altered_byte_is_noticed(client: Callable[..., VaultClient], key: str) -> None:
    async with await opened(client, key) as master:
        wrapped = await master.wrap(b"k" * 32, b"here")
        for at in range(len(wrapped)):
            altered = bytearray(wrapped)
            altered[at] ^= 1
            try:
                assert await master.unwrap(bytes(altered), b"here") == b"k" * 32
            except (WrappedKeyBroken, MasterKeyMissing):
                continue
            # The last letters of base64 hold bits of no meaning.
            assert at >= len(wrapped) - 3
        for cut in range(len(wrapped) - 1):
            with pytest.raises(KisekiError):
                await master.unwrap(wrapped[:cut], b"here")


async def test_one_that_is_broken_does_not_hide_the_others_of_its_call(
    client: Callable[..., VaultClient], key: str
) -> None:
    async with await opened(client, key) as master:
        wrapped = await asyncio.gather(*(master.wrap(b"%d" % number, b"c%d" % number) for number in range(250)))
        answers = await asyncio.gather(
            *(master.unwrap(each, b"no" if at % 50 == 7 else b"c%d" % at) for at, each in enumerate(wrapped)),
            return_exceptions=True,
        )
        for at, answer in enumerate(answers):
            assert isinstance(answer, WrappedKeyBroken) if at % 50 == 7 else answer == b"%d" % at


async def test_many_go_in_few_calls(
    client: Callable[..., VaultClient], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: list[str] = []
    plain = VaultClient.write

    async def watched(self: VaultClient, path: str, body: dict[str, object]) -> dict[str, object]:
        paths.append(path)
        return await plain(self, path, body)

    async with await opened(client, key) as master:
        monkeypatch.setattr(VaultClient, "write", watched)
        store, clock = MemoryKeyStore(), FakeClock()
        subjects = [f"UserAccount-{number:026}" for number in range(500)]
        await (await KeyProtector.open(store=store, wrapper=master, clock=clock)).ensure(subjects)
        made = len(paths)
        await (await KeyProtector.open(store=store, wrapper=master, clock=clock)).ciphers(subjects)
    assert made <= 100
    assert len(paths) - made <= 100


@pytest.mark.parametrize(
    "options", [{"type": "rsa-2048"}, {"type": "ed25519"}, {"derived": True}, {"type": "ecdsa-p256"}]
)
async def test_a_key_of_an_unfit_type_is_refused(
    vault: VaultServer, client: Callable[..., VaultClient], options: dict[str, Any]
) -> None:
    with pytest.raises(MasterKeyRefused, match="aes256-gcm96"):
        await opened(client, new_key(vault, **options))


async def test_a_key_that_does_not_bind_contexts_is_refused(
    client: Callable[..., VaultClient], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an old Vault, which knows no associated data, would behave."""
    plain = VaultClient.write

    async def forgetful(self: VaultClient, path: str, body: dict[str, list[dict[str, str]]]) -> dict[str, object]:
        for each in body["batch_input"]:
            del each["associated_data"]
        return await plain(self, path, body)

    monkeypatch.setattr(VaultClient, "write", forgetful)
    with pytest.raises(MasterKeyRefused, match="does not bind"):
        await opened(client, key)


async def test_no_key_is_made_by_chance(vault: VaultServer, client: Callable[..., VaultClient]) -> None:
    token = vault.token_for(policy("absent"))
    with pytest.raises(KisekiError):
        await opened(client, "absent", token=token)
    assert "absent" not in str(vault.ask("LIST", "transit/keys"))


@pytest.mark.parametrize(
    "rest",
    [
        "transit",
        "/k",
        "transit/",
        "../sys/k",
        "transit/../../sys/seal",
        "transit/k?x=1",
        "transit/k#x",
        "t t/k",
        "%2e/k",
    ],
)
async def test_a_setting_can_not_lead_elsewhere(client: Callable[..., VaultClient], rest: str) -> None:
    with pytest.raises(MasterKeyRefused):
        await open_master_keys(f"vault-transit://{rest}", default=NOWHERE, vault=client)
    with pytest.raises(MasterKeyRefused, match="vault_address"):
        await open_master_keys("vault-transit://transit/k", default=NOWHERE)


async def test_a_policy_that_is_taken_away_is_waited_for(
    vault: VaultServer, client: Callable[..., VaultClient], key: str
) -> None:
    token = vault.token_for(policy(key))
    async with await opened(client, key, token=token) as master:
        wrapped = await master.wrap(b"plain", b"here")
        vault.ask("POST", "auth/token/revoke", {"token": token})
        attempts: list[Callable[[], Awaitable[bytes]]] = [
            lambda: master.wrap(b"plain", b"here"),
            lambda: master.unwrap(wrapped, b"here"),
        ]
        for attempt in attempts:
            with pytest.raises(MasterKeyUnavailable) as refused:
                await attempt()
            assert token not in str(refused.value)


async def test_rotation_inside_vault(
    open_store: Callable[[], Awaitable[KeyStore]], vault: VaultServer, client: Callable[..., VaultClient], key: str
) -> None:
    """A newer version wraps, older ones are read, re-wrapping moves on, and then the old version can be retired."""
    clock, store = FakeClock(), await open_store()
    subjects = [f"UserAccount-{number:026}" for number in range(30)]
    v1, v2 = (f"vault-transit:transit/{key}:v{number}" for number in (1, 2))
    async with await opened(client, key) as running:
        protector = await KeyProtector.open(store=store, wrapper=running, clock=clock)
        sealed = {name: cipher.seal(b"data", b"f") for name, cipher in (await protector.ensure(subjects)).items()}
        vault.ask("POST", f"transit/keys/{key}/rotate")
        async with await opened(client, key) as fresh:
            assert fresh.key_id == v2
            assert await survey(store) == {v1: 31}
            assert await rewrap(store, fresh) == 31
            assert await survey(store) == {v2: 31}
        vault.ask("POST", f"transit/keys/{key}/config", {"min_decryption_version": 2})
        clock.advance(1_000)
        for name, cipher in (await protector.ensure(subjects)).items():
            assert cipher.open(sealed[name], b"f") == b"data", "a process that began before goes on"
        await protector.ensure(["UserAccount-new"])
        assert running.key_id == v2, "and has seen the newer version"


async def test_a_key_moved_to_another_subject_or_renamed_is_noticed(
    vault: VaultServer, client: Callable[..., VaultClient], key: str
) -> None:
    store, clock = MemoryKeyStore(), FakeClock()
    async with await opened(client, key) as master:
        await (await KeyProtector.open(store=store, wrapper=master, clock=clock)).ensure(["A-1", "A-2"])
        stored = await store.load(["A-1", "A-2"])
        (one,), (two,) = stored["A-1"].keys, stored["A-2"].keys
        await store.replace([Rewrapped("A-1", one, two.wrapped)])
        with pytest.raises(WrappedKeyBroken):
            await (await KeyProtector.open(store=store, wrapper=master, clock=clock)).ciphers(["A-1"])
        name, _, ciphertext = two.wrapped.partition(b"\0")
        for other in (name.replace(b":v1", b":v2"), name + b"2", b"vault-transit:transit/other:v1", b"local-1"):
            with pytest.raises((WrappedKeyBroken, MasterKeyMissing)):
                await master.unwrap(other + b"\0" + ciphertext, b"subject-key|A-2|" + two.key_id.encode())


async def test_vault_going_away(tmp_path: Path) -> None:
    """What is in memory goes on until its time is up; what is not says so in bounded time, also when Vault hangs."""
    try:
        server = VaultServer()
        server.__enter__()
    except NoVault as problem:
        pytest.skip(f"Vault tests need a server: {problem}")
    try:
        server.ask("POST", "sys/mounts/transit", {"type": "transit"})
        key = new_key(server)
        token_file = tmp_path / "token"
        token_file.write_text(server.token)
        quick = VaultClient(server.address, token_file=token_file, attempt_timeout=0.3, deadline=1.0)
        master = MasterKeys(await VaultMasterKey.open(quick, mount="transit", key=key))
        clock = FakeClock()
        protector = await KeyProtector.open(store=MemoryKeyStore(), wrapper=master, clock=clock, ttl=300)
        sealed = (await protector.ensure([SUBJECT]))[SUBJECT].seal(b"data", b"f")

        server.freeze()
        assert (await protector.ensure([SUBJECT]))[SUBJECT].open(sealed, b"f") == b"data"
        began = time.monotonic()
        clock.advance(301)
        for subject in (SUBJECT, "UserAccount-new"):
            with pytest.raises(MasterKeyUnavailable):
                await protector.ensure([subject])
        assert time.monotonic() - began < 10
        server.thaw()
        async with asyncio.timeout(30):
            while True:  # the circuit closes by itself
                try:
                    cipher = (await protector.ensure([SUBJECT]))[SUBJECT]
                    break
                except Unavailable as problem:
                    await asyncio.sleep(0.05 * problem.retry_after)
        assert cipher.open(sealed, b"f") == b"data"

        server.halt()
        clock.advance(301)
        with pytest.raises(MasterKeyUnavailable) as gone:
            await protector.ciphers([SUBJECT])
        assert server.token not in str(gone.value)
        await master.close()
    finally:
        server.stop()
