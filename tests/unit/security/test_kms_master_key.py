"""The master key in KMS against a stand-in that encrypts as KMS does, and the client against a hostile endpoint."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kiseki.clients.aws_json import AwsJsonClient, AwsRefused, AwsUnavailable, endpoint_of
from kiseki.clients.kms import KmsClient
from kiseki.clients.urls import StoreUrlInvalid
from kiseki.kernel.errors import KisekiError
from kiseki.security.kms_master_key import KmsMasterKey
from kiseki.security.master_key import (
    MasterKeyMissing,
    MasterKeyRefused,
    MasterKeyUnavailable,
    WrappedKeyBroken,
    wrapped_by,
)

OURS = "arn:aws:kms:eu-west-1:111122223333:key/11111111-2222-3333-4444-555555555555"
HIS = "arn:aws:kms:eu-west-1:999999999999:key/99999999-2222-3333-4444-555555555555"
MRK = "arn:aws:kms:{}:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab"


class Kms(KmsClient):
    """Keys by ARN: the ciphertext names its key, as in KMS, and decrypting with another is refused."""

    def __init__(self) -> None:
        self.keys = {arn: AESGCM(os.urandom(32)) for arn in (OURS, HIS)}
        mrk = AESGCM(os.urandom(32))
        self.keys |= {MRK.format(region): mrk for region in ("eu-west-1", "us-east-1")}
        self.problem: Exception | None = None
        self.closed = 0

    async def encrypt(self, key: str, plain: bytes, context: Mapping[str, str]) -> tuple[str, bytes]:
        self._check(key)
        nonce = os.urandom(12)
        return key, self._mark(key) + nonce + self.keys[key].encrypt(nonce, plain, repr(context).encode())

    async def decrypt(self, key: str, ciphertext: bytes, context: Mapping[str, str]) -> bytes:
        self._check(key)
        if ciphertext[:4] not in {self._mark(each) for each in self.keys}:
            raise AwsRefused("no", kind="InvalidCiphertextException")
        if ciphertext[:4] != self._mark(key):
            raise AwsRefused("no", kind="IncorrectKeyException")
        try:
            return self.keys[key].decrypt(ciphertext[4:16], ciphertext[16:], repr(context).encode())
        except (InvalidTag, ValueError):
            raise AwsRefused("no", kind="InvalidCiphertextException") from None

    async def close(self) -> None:
        self.closed += 1

    def _mark(self, key: str) -> bytes:
        return key[-4:].encode()

    def _check(self, key: str) -> None:
        if self.problem is not None:
            raise self.problem
        if key not in self.keys:
            raise AwsRefused("no", kind="NotFoundException")


@pytest.fixture
def kms() -> Kms:
    return Kms()


async def test_changing_any_bit_is_noticed(kms: Kms) -> None:
    master = await KmsMasterKey.open(kms, OURS)
    wrapped = await master.wrap(b"k" * 32, b"here")
    assert wrapped_by(wrapped) == OURS
    for at in range(len(wrapped)):
        for bit in range(8):
            altered = bytearray(wrapped)
            altered[at] ^= 1 << bit
            with pytest.raises((WrappedKeyBroken, MasterKeyMissing)):
                await master.unwrap(bytes(altered), b"here")
        with pytest.raises(WrappedKeyBroken):
            await master.unwrap(wrapped[:at], b"here")
    with pytest.raises(WrappedKeyBroken):
        await master.unwrap(wrapped, b"there")


async def test_a_name_that_claims_another_key_does_not_help(kms: Kms) -> None:
    """Who can write to the key store wraps with a key of his own, which our role may use, and puts our name before."""
    ciphertext = (await (await KmsMasterKey.open(kms, HIS)).wrap(b"known to him", b"here")).partition(b"\0")[2]
    master = await KmsMasterKey.open(kms, OURS)
    with pytest.raises(WrappedKeyBroken):
        await master.unwrap(OURS.encode() + b"\0" + ciphertext, b"here")
    with pytest.raises(MasterKeyMissing):
        await master.unwrap(HIS.encode() + b"\0" + ciphertext, b"here")


async def test_copies_of_a_multi_region_key_are_one_key(kms: Kms) -> None:
    """After a failover the other region reads what was wrapped, and there is nothing to re-wrap."""
    west, east = [await KmsMasterKey.open(kms, MRK.format(region)) for region in ("eu-west-1", "us-east-1")]
    assert west.key_id == east.key_id
    assert await east.unwrap(await west.wrap(b"plain", b"here"), b"here") == b"plain"


@pytest.mark.parametrize(
    ("kind", "wrapping", "reading", "starting"),
    [
        ("NotFoundException", MasterKeyMissing, MasterKeyMissing, MasterKeyMissing),
        ("AccessDeniedException", MasterKeyUnavailable, MasterKeyUnavailable, MasterKeyUnavailable),
        ("DisabledException", MasterKeyUnavailable, MasterKeyUnavailable, MasterKeyUnavailable),
        ("KMSInvalidStateException", MasterKeyUnavailable, MasterKeyUnavailable, MasterKeyUnavailable),
        ("InvalidCiphertextException", MasterKeyUnavailable, WrappedKeyBroken, MasterKeyRefused),
        ("IncorrectKeyException", MasterKeyUnavailable, WrappedKeyBroken, MasterKeyRefused),
        ("InvalidKeyUsageException", MasterKeyUnavailable, MasterKeyUnavailable, MasterKeyRefused),
    ],
)
async def test_what_kms_refuses(
    kms: Kms, kind: str, wrapping: type[KisekiError], reading: type[KisekiError], starting: type[KisekiError]
) -> None:
    master = await KmsMasterKey.open(kms, OURS)
    wrapped = await master.wrap(b"plain", b"here")
    kms.problem = AwsRefused("no", kind=kind)
    for attempt, expected in (
        (lambda: master.wrap(b"plain", b"here"), wrapping),
        (lambda: master.unwrap(wrapped, b"here"), reading),
        (lambda: KmsMasterKey.open(kms, OURS), starting),
    ):
        with pytest.raises(KisekiError) as raised:
            await attempt()
        assert type(raised.value) is expected
    assert kms.closed == 1, "a client that is of no use is let go of"
    kms.problem = AwsUnavailable("net", retry_after=7)
    with pytest.raises(MasterKeyUnavailable) as away:
        await master.unwrap(wrapped, b"here")
    assert away.value.retry_after == 7


@pytest.mark.parametrize("arn", ["", "alias/x", "arn:aws:kms:eu-west-1:1:key/x", f"{OURS}\0", f"{OURS} x", "a b"])
async def test_an_answer_that_names_no_key_is_not_believed(kms: Kms, arn: str) -> None:
    kms.keys[arn] = kms.keys[OURS]
    with pytest.raises((MasterKeyUnavailable, MasterKeyRefused)):
        await KmsMasterKey.open(kms, arn)


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def endpoint(answer: Answer, **options: Any) -> AsyncIterator[AwsJsonClient]:
    """A client whose service answers so."""
    application = web.Application()
    application.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    options = {"attempt_timeout": 0.3, "deadline": 1.5, **options}
    client = AwsJsonClient(
        service="kms", target="TrentService", region="eu-west-1", endpoint=f"http://127.0.0.1:{port}", **options
    )
    try:
        yield client
    finally:
        await client.close()
        await runner.cleanup()


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-aws")


async def test_throttling_is_retried_and_then_said() -> None:
    asked = 0

    async def throttled(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        if asked < 4:
            return web.json_response({"__type": "ThrottlingException", "message": "slow"}, status=400)
        return web.json_response({"ok": "yes"})

    async with endpoint(throttled) as client:
        assert await client.call("Encrypt", {}) == {"ok": "yes"}
    assert asked == 4

    async def always(request: web.Request) -> web.Response:
        return web.json_response({"__type": "com.amazonaws#ThrottlingException"}, status=400)

    async with endpoint(always) as client:
        began = time.monotonic()
        with pytest.raises(AwsUnavailable, match="ThrottlingException"):
            await client.call("Encrypt", {})
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("kind", ["ExpiredTokenException", "UnrecognizedClientException", "InvalidSignatureException"])
async def test_refused_credentials_are_asked_for_again_once(kind: str) -> None:
    asked = 0

    async def refused(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.json_response({"__type": kind, "message": "secret-of-aws AKIDEXAMPLE"}, status=400)

    async with endpoint(refused) as client:
        with pytest.raises(AwsUnavailable) as raised:
            await client.call("Encrypt", {})
    assert asked == 2
    assert "secret-of-aws" not in str(raised.value)
    assert "AKID" not in str(raised.value)


async def test_the_words_of_a_service_are_not_repeated() -> None:
    async def talkative(request: web.Request) -> web.Response:
        return web.json_response({"__type": "ValidationException", "message": "bad value hunter2"}, status=400)

    async def strange(request: web.Request) -> web.Response:
        return web.json_response({"__type": "x\nhunter2 y"}, status=403)

    for answer in (talkative, strange):
        async with endpoint(answer) as client:
            with pytest.raises(AwsRefused) as raised:
                await client.call("Encrypt", {})
        assert "hunter2" not in str(raised.value)
        assert "\n" not in str(raised.value)


async def test_a_redirect_is_not_followed() -> None:
    """It would take signed headers, and what is to be encrypted, elsewhere."""
    paths: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        paths.append(request.path)
        raise web.HTTPTemporaryRedirect("/elsewhere")

    async with endpoint(elsewhere) as client:
        with pytest.raises(KisekiError):
            await client.call("Encrypt", {})
    assert set(paths) == {"/"}


async def test_hanging_dripping_endless_and_broken_answers_end_in_bounded_time() -> None:
    async def hangs(request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    async def drips(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.02)

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 65_536)

    async def garbage(request: web.Request) -> web.Response:
        return web.Response(body=b"\xff<html>")

    async def listed(request: web.Request) -> web.Response:
        return web.json_response(["no", "object"])

    for answer in (hangs, drips, endless, garbage, listed):
        async with endpoint(answer) as client:
            began = time.monotonic()
            with pytest.raises(AwsUnavailable):
                await client.call("Encrypt", {})
            assert time.monotonic() - began < 5, answer.__name__


async def test_no_more_calls_run_at_once_than_allowed() -> None:
    running = most = 0

    async def slow(request: web.Request) -> web.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return web.json_response({})

    async with endpoint(slow, connections=5, attempt_timeout=5.0, deadline=10.0) as client:
        await asyncio.gather(*(client.call("Encrypt", {}) for _ in range(50)))
    assert most == 5


@pytest.mark.parametrize("answer", [{}, {"KeyId": OURS}, {"KeyId": OURS, "CiphertextBlob": "*"}, {"KeyId": 5}])
async def test_incomplete_answers_of_kms_are_an_outage(answer: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    async def call(self: AwsJsonClient, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        return answer

    monkeypatch.setattr(AwsJsonClient, "call", call)
    client = KmsClient(region="eu-west-1")
    with pytest.raises(AwsUnavailable):
        await client.encrypt(OURS, b"", {})
    with pytest.raises(AwsUnavailable):
        await client.decrypt(OURS, b"", {})
    await client.close()


@pytest.mark.parametrize("url", ["", "kms", "ftp://x", "http://u:p@x", "http://x/path", "http://x?a=b", "http://x:no"])
def test_endpoints_that_are_none(url: str) -> None:
    with pytest.raises(StoreUrlInvalid):
        endpoint_of(url)
    assert endpoint_of("https://x:1/") == "https://x:1"
