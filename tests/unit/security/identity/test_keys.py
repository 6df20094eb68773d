"""Unit: which keys are good enough, and that no message shows one."""

from __future__ import annotations

import json
import random
import secrets
import string
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from kiseki.security.identity.jwks import MAX_ENTRIES, MAX_JWKS_BYTES, parse_jwks
from kiseki.security.identity.keys import (
    KeyRefused,
    KeySet,
    secret_key,
    signing_key_from_pem,
    signing_key_from_secret,
    verification_key,
    verification_key_from_pem,
)
from tests.unit.security.identity.token_parts import (
    EC,
    ED,
    RSA,
    SECRET,
    b64,
    ec_jwk,
    ed_jwk,
    jwks,
    number,
    private_pem,
    public_pem,
    rsa_jwk,
)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(KeyRefused) as problem:
        call()
    assert "\n" not in str(problem.value)
    assert problem.value.__cause__ is None
    return str(problem.value)


WEAK = {
    "empty": b"",
    "short": secrets.token_bytes(31),
    "zeros": bytes(32),
    "one byte": b"x" * 64,
    "pattern": b"ab" * 40,
    "long pattern": secrets.token_bytes(16) * 4,
    "pattern cut short": (secrets.token_bytes(11) * 8)[:80],
    "digits": b"0123456789" * 8,
    "rising": bytes(range(64)),
    "falling": bytes(range(255, 190, -1)),
    "letters": string.ascii_letters.encode() * 2,
    "word": b"secret" * 10,
    "words": b"change-me-in-production-please-this-is-the-secret",
    "example": b"your-256-bit-secret-your-256-bit-secret!",
    "phrase": b"the quick brown fox jumps over the lazy dog",
    "keyboard": b"qwertyuiopasdfghjklzxcvbnm1234567890",
    "hex of 128 bits": secrets.token_hex(16).encode(),
    "hex of 252 bits": secrets.token_hex(32).encode()[:63],
    "a uuid": str(uuid.uuid4()).encode(),
    "digits of 106 bits": "".join(random.Random(1).choices(string.digits, k=32)).encode(),
    "base64 of 192 bits": b64(secrets.token_bytes(24)),
    "few bytes": bytes(random.Random(2).choices(b"\x00\xff", k=64)),
    "padded with zeros": secrets.token_bytes(16) + bytes(16),
    "padded with words": secrets.token_bytes(12) + b"passwordsecretdefault",
    "long": secrets.token_bytes(1025),
    "a PEM": public_pem(RSA),
    "a key set": jwks(rsa_jwk(RSA)),
    "an ssh key": b"ssh-ed25519 " + secrets.token_hex(40).encode(),
}


@pytest.mark.parametrize("name", WEAK)
def test_secrets_that_can_be_guessed(name: str) -> None:
    message = refused(lambda: secret_key(WEAK[name]))
    assert WEAK[name].decode("latin-1") not in message or not WEAK[name]
    refused(lambda: signing_key_from_secret(WEAK[name]))


def test_random_secrets_are_good() -> None:
    """Of every usual form, thousands of them, so that nobody is refused by chance."""
    choose = random.Random(3)
    for _ in range(1500):
        bits = choose.randbytes(32)
        for secret in (bits, bits.hex().encode(), b64(bits), b64(choose.randbytes(33)), bits.hex().upper().encode()):
            secret_key(secret)
    secret_key("".join(choose.choices(string.digits, k=90)).encode())
    secret_key("".join(choose.choices(string.printable[:94], k=40)).encode())


def test_rsa_keys_have_a_size() -> None:
    small = rsa.generate_private_key(65537, 1024)
    assert "2048 to 8192 bits, not 1024" in refused(lambda: verification_key_from_pem(public_pem(small)))
    refused(lambda: signing_key_from_pem(private_pem(small)))
    numbers = rsa.RSAPublicNumbers(65537, (1 << 8192) + 1).public_key()
    assert "not 8193" in refused(lambda: verification_key(numbers))


@pytest.mark.parametrize("exponent", [3, 17, 257, 65535, (1 << 33) + 1])
def test_rsa_keys_have_an_exponent(exponent: int) -> None:
    modulus = RSA.public_key().public_numbers().n
    assert "exponent" in refused(lambda: verification_key(rsa.RSAPublicNumbers(exponent, modulus).public_key()))


@pytest.mark.parametrize("curve", [ec.SECP256K1(), ec.SECP384R1(), ec.SECP224R1()], ids=lambda curve: curve.name)
def test_the_curve_is_p256(curve: ec.EllipticCurve) -> None:
    assert "P-256" in refused(lambda: verification_key_from_pem(public_pem(ec.generate_private_key(curve))))


@pytest.mark.parametrize(
    "key",
    [ed448.Ed448PrivateKey.generate(), x25519.X25519PrivateKey.generate(), dsa.generate_private_key(2048)],
    ids=lambda key: type(key).__name__,
)
def test_other_types(key: Any) -> None:
    assert "RSA, P-256 or Ed25519" in refused(lambda: verification_key_from_pem(public_pem(key)))
    assert "RSA, P-256 or Ed25519" in refused(lambda: signing_key_from_pem(private_pem(key)))


SMALL_ORDER = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
]


@pytest.mark.parametrize("point", SMALL_ORDER)
def test_points_of_small_order(point: str) -> None:
    public = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(point))
    assert "small order" in refused(lambda: verification_key(public))


def test_the_wrong_file() -> None:
    locked = RSA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    for pem in (
        b"",
        b"x",
        public_pem(RSA) * 2,
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        SECRET,
    ):
        refused(lambda pem=pem: verification_key_from_pem(pem))  # type: ignore[misc]
        refused(lambda pem=pem: signing_key_from_pem(pem))  # type: ignore[misc]
    assert "private one" in refused(lambda: verification_key_from_pem(private_pem(RSA)))
    assert "certificate" in refused(lambda: verification_key_from_pem(b"-----BEGIN CERTIFICATE-----\nAAAA\n"))
    assert "password" in refused(lambda: signing_key_from_pem(locked))


@pytest.mark.parametrize(
    ("pem", "algorithm"),
    [(public_pem(RSA), "ES256"), (public_pem(RSA), "HS256"), (public_pem(EC), "RS256"), (public_pem(ED), "none")],
)
def test_an_algorithm_fits_its_key(pem: bytes, algorithm: str) -> None:
    refused(lambda: verification_key_from_pem(pem, algorithm=algorithm))


def test_a_key_without_an_algorithm_has_one() -> None:
    assert [verification_key_from_pem(public_pem(key)).algorithm for key in (RSA, EC, ED)] == [
        "RS256",
        "ES256",
        "EdDSA",
    ]
    assert verification_key_from_pem(public_pem(RSA), algorithm="PS256").algorithm == "PS256"
    assert verification_key_from_pem(public_pem(ED), algorithm="Ed25519").algorithm == "Ed25519"


def test_key_ids_are_unique_and_few_keys_have_none() -> None:
    keys = [secret_key(secrets.token_bytes(32)) for _ in range(5)]
    assert "no key id" in refused(lambda: KeySet(keys))
    assert len(KeySet(keys[:4]).find("HS256", None) or ()) == 4
    assert "the key id a" in refused(lambda: KeySet(secret_key(secrets.token_bytes(32), key_id="a") for _ in range(2)))
    refused(lambda: secret_key(SECRET, key_id="a\n"))
    many = KeySet(secret_key(secrets.token_bytes(32), key_id=str(index)) for index in range(5))
    assert many.find("HS256", None) is None
    assert [key.key_id for key in many.find("HS256", "3") or ()] == ["3"]


# Key sets

GOOD = rsa_jwk(RSA, kid="good", alg="RS256", use="sig")


def test_a_key_set_is_read() -> None:
    keys = parse_jwks(
        jwks(GOOD, ec_jwk(EC, kid="e"), ed_jwk(ED, kid="d"), rsa_jwk(RSA, kid="p", alg="PS256")), where="x"
    )
    assert [(key.key_id, key.algorithm) for key in keys.keys] == [
        ("good", "RS256"),
        ("e", "ES256"),
        ("d", "EdDSA"),
        ("p", "PS256"),
    ]


def test_an_rsa_key_without_alg_has_the_one_of_the_settings() -> None:
    document = jwks(rsa_jwk(RSA, kid="r"))
    assert parse_jwks(document, where="x").keys[0].algorithm == "RS256"
    assert parse_jwks(document, where="x", rsa_algorithm="PS256").keys[0].algorithm == "PS256"


OFF_CURVE = ec_jwk(EC, kid="x") | {"y": b64(bytes(31) + b"\1").decode()}
UNFIT: dict[str, Any] = {
    "no object": "x",
    "none": None,
    "a number": 1,
    "list": [GOOD],
    "for encryption": GOOD | {"kid": "x", "use": "enc"},
    "use is no text": GOOD | {"kid": "x", "use": ["sig"]},
    "only signs": GOOD | {"kid": "x", "key_ops": ["sign"]},
    "key_ops is a text": GOOD | {"kid": "x", "key_ops": "verify"},
    "unknown type": {"kty": "AKP", "kid": "x"},
    "type is a list": {"kty": ["RSA"], "kid": "x"},
    "no type": {"kid": "x"},
    "private": GOOD | {"kid": "x", "d": "AQAB"},
    "private curve": ec_jwk(EC, kid="x", d="AQAB"),
    "secret": {"kty": "oct", "kid": "x", "k": b64(SECRET).decode(), "alg": "HS256"},
    "other algorithm": GOOD | {"kid": "x", "alg": "RS512"},
    "none algorithm": GOOD | {"kid": "x", "alg": "none"},
    "algorithm is a list": GOOD | {"kid": "x", "alg": ["RS256"]},
    "algorithm of another type": GOOD | {"kid": "x", "alg": "ES256"},
    "HS256 with a public key": GOOD | {"kid": "x", "alg": "HS256"},
    "kid is a number": GOOD | {"kid": 1},
    "kid is long": GOOD | {"kid": "x" * 129},
    "kid has a newline": GOOD | {"kid": "a\nb"},
    "same kid": ec_jwk(EC, kid="good"),
    "short": rsa_jwk(rsa.generate_private_key(65537, 1024), kid="x"),
    "long": GOOD | {"kid": "x", "n": number((1 << 8200) + 1)},
    "very long": GOOD | {"kid": "x", "n": "f" * 100_000},
    "even": GOOD | {"kid": "x", "n": number(1 << 2047)},
    "exponent 1": GOOD | {"kid": "x", "e": "AQ"},
    "exponent 3": GOOD | {"kid": "x", "e": "Aw"},
    "exponent 0": GOOD | {"kid": "x", "e": "AA"},
    "no modulus": {"kty": "RSA", "kid": "x", "e": "AQAB"},
    "modulus is a number": GOOD | {"kid": "x", "n": 12345},
    "padded": GOOD | {"kid": "x", "e": "AQAB===="},
    "not ASCII": GOOD | {"kid": "x", "e": "ＡＱＡＢ"},
    "off the curve": OFF_CURVE,
    "zero point": ec_jwk(EC, kid="x") | {"x": b64(bytes(32)).decode(), "y": b64(bytes(32)).decode()},
    "short point": ec_jwk(EC, kid="x") | {"x": "AQ"},
    "other curve": ec_jwk(EC, kid="x") | {"crv": "P-384"},
    "curve of bitcoin": ec_jwk(EC, kid="x") | {"crv": "secp256k1"},
    "x25519": ed_jwk(ED, kid="x") | {"crv": "X25519"},
    "small order": ed_jwk(ED, kid="x") | {"x": b64(bytes(32)).decode()},
}


@pytest.mark.parametrize("name", UNFIT)
def test_one_unfit_entry_harms_no_other(name: str, caplog: pytest.LogCaptureFixture) -> None:
    for entries in ((GOOD, UNFIT[name]), (GOOD, UNFIT[name], ec_jwk(EC, kid="later"))):
        caplog.clear()
        keys = parse_jwks(jwks(*entries), where="the set")
        assert [key.key_id for key in keys.keys] == ["good", "later"][: len(entries) - 1]
        assert [record.getMessage()[:33] for record in caplog.records] == ["key set the set: entry 1 is left "]
    if name != "same kid":
        assert "no key that can be used" in refused(lambda: parse_jwks(jwks(UNFIT[name]), where="x"))


def test_only_some_keys_have_no_id(caplog: pytest.LogCaptureFixture) -> None:
    keys = parse_jwks(jwks(*(ed_jwk(ed25519.Ed25519PrivateKey.generate()) for _ in range(6))), where="x")
    assert len(keys.keys) == 4
    assert len(caplog.records) == 2


def test_secrets_only_where_nobody_reads() -> None:
    entry = {"kty": "oct", "kid": "x", "k": b64(SECRET).decode(), "alg": "HS256"}
    assert parse_jwks(jwks(entry), where="x", secrets=True).keys[0].algorithm == "HS256"
    for weak in (entry | {"k": b64(bytes(32)).decode()}, entry | {"alg": None}, entry | {"alg": "HS512"}):
        refused(lambda weak=weak: parse_jwks(jwks(weak), where="x", secrets=True))  # type: ignore[misc]


def test_the_list_of_algorithms_holds() -> None:
    keys = parse_jwks(jwks(GOOD, ec_jwk(EC, kid="e")), where="x", algorithms=["ES256"])
    assert [key.key_id for key in keys.keys] == ["e"]


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b'{"keys":{}}',
        b'{"keys":null}',
        b'{"keys":[]}',
        b"<html>",
        b"\x1f\x8b\x08\0",
        json.dumps({"keys": [GOOD]}).encode("utf-16"),
        b'{"keys":[],' + jwks(GOOD)[1:],
        jwks(GOOD)[:-1],
        jwks(GOOD) + b"x",
        jwks(*[GOOD] * (MAX_ENTRIES + 1)),
        jwks(GOOD) + b" " * MAX_JWKS_BYTES,
        b'{"keys":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        json.dumps(GOOD).encode(),
        # Seconds turn to hours when a reader starts again from every quote.
        b'{"keys":"' + b'\\"' * 250_000,
        b'{"keys":"' + b"\\" * 500_001,
        b'"' * 500_000,
    ],
    ids=range(20),
)
def test_what_is_no_key_set(document: bytes) -> None:
    refused(lambda: parse_jwks(document, where="x"))


def test_no_message_of_a_key_set_shows_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    private = GOOD | {"kid": "x", "d": "cHJpdmF0ZS1wYXJ0"}
    secret = {"kty": "oct", "kid": "y", "k": b64(SECRET).decode(), "alg": "HS256"}
    parse_jwks(jwks(GOOD, private, secret), where="x")
    assert "cHJpdmF0ZS1wYXJ0" not in caplog.text
    assert b64(SECRET).decode() not in caplog.text
