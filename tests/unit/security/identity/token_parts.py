"""Keys, and tokens made by hand: every byte of them is the test's to choose."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from kiseki.kernel.ports import Credentials
from kiseki.security.digests import Digests
from kiseki.security.identity.claims import ClaimRules
from kiseki.security.identity.key_sources import FixedKeys, KeySource
from kiseki.security.identity.keys import SigningKey, VerificationKey, signing_key_from_pem, signing_key_from_secret
from kiseki.security.identity.revocations import NoRevocations, RevocationView
from kiseki.security.identity.token_identity import TokenIdentity
from kiseki.security.identity.verifier import TokenVerifier
from tests.support import Audited, ManualClock

ISSUER = "https://issuer.example"
AUDIENCE = "kiseki"
SECRET = bytes.fromhex("9f3bd1c07a4e6258f10ce97d3386b54a21dcf87e0b96a3d54f1872ecb03a6d99")
RULES = ClaimRules(issuer=ISSUER, audience=AUDIENCE, max_lifetime=3600, leeway=10)
DIGESTS = Digests(bytes(range(32)))

RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()

Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def private_pem(key: Private) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_pem(key: Any) -> bytes:
    public: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return public


HS256 = signing_key_from_secret(SECRET, key_id="hs")
RS256 = signing_key_from_pem(private_pem(RSA), key_id="rs")
PS256 = signing_key_from_pem(private_pem(RSA), algorithm="PS256", key_id="ps")
ES256 = signing_key_from_pem(private_pem(EC), key_id="es")
EDDSA = signing_key_from_pem(private_pem(ED), key_id="ed")
EVERY_KEY = (HS256, RS256, PS256, ES256, EDDSA)


def b64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def number(value: int) -> str:
    return b64(value.to_bytes((value.bit_length() + 7) // 8)).decode()


def rsa_jwk(key: rsa.RSAPrivateKey, **members: Any) -> dict[str, Any]:
    numbers = key.public_key().public_numbers()
    return {"kty": "RSA", "n": number(numbers.n), "e": number(numbers.e), **members}


def ec_jwk(key: ec.EllipticCurvePrivateKey, **members: Any) -> dict[str, Any]:
    numbers = key.public_key().public_numbers()
    x, y = (b64(value.to_bytes(32)).decode() for value in (numbers.x, numbers.y))
    return {"kty": "EC", "crv": "P-256", "x": x, "y": y, **members}


def ed_jwk(key: ed25519.Ed25519PrivateKey, **members: Any) -> dict[str, Any]:
    return {"kty": "OKP", "crv": "Ed25519", "x": b64(key.public_key().public_bytes_raw()).decode(), **members}


def jwks(*entries: Any) -> bytes:
    return json.dumps({"keys": entries}).encode()


def claims(now: float, **changes: Any) -> dict[str, Any]:
    """Good claims, with changes; a change to None takes the claim away."""
    base = {"iss": ISSUER, "aud": AUDIENCE, "sub": "u-1", "iat": int(now), "exp": int(now) + 600, "roles": ["user"]}
    return {name: value for name, value in (base | changes).items() if value is not None}


def signed(key: SigningKey, header: Any, payload: Any) -> bytes:
    """A token over a header and claims, or over the bytes that stand for them."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    signing_input = b".".join(b64(part) for part in parts)
    return signing_input + b"." + b64(key.sign(signing_input))


def hmac_signed(secret: bytes, header: Any, payload: Any) -> bytes:
    """A token with HMAC-SHA-256 under any secret, whatever the header says."""
    signing_input = b".".join(b64(json.dumps(part).encode()) for part in (header, payload))
    return signing_input + b"." + b64(hmac.new(secret, signing_input, hashlib.sha256).digest())


class Setup:
    """An identity with what stands around it."""

    def __init__(
        self,
        *keys: VerificationKey,
        source: KeySource | None = None,
        revocations: RevocationView | None = None,
        required_type: str | None = None,
        rules: ClaimRules = RULES,
        cache_entries: int = 100,
        clock: ManualClock | None = None,
    ) -> None:
        self.clock = clock or ManualClock()
        self.audited = Audited()
        self.verifier = TokenVerifier(
            keys=source if source is not None else FixedKeys(keys or (HS256.verification,)),
            rules=rules,
            clock=self.clock,
            revocations=revocations if revocations is not None else NoRevocations(),
            required_type=required_type,
        )
        self.identity = TokenIdentity(
            self.verifier,
            pseudonym=DIGESTS.pseudonym,
            clock=self.clock,
            auditor=self.audited,
            cache_entries=cache_entries,
        )

    @property
    def now(self) -> float:
        return self.clock.now().timestamp()

    def claims(self, **changes: Any) -> dict[str, Any]:
        return claims(self.now, **changes)

    def token(self, key: SigningKey = HS256, **changes: Any) -> bytes:
        return signed(key, {"alg": key.algorithm, "kid": key.key_id, "typ": "JWT"}, self.claims(**changes))


def bearing(*headers: bytes) -> Credentials:
    return Credentials(authorization=headers, peer="192.0.2.7", host="localhost", forwarded=False)


def bearer(token: bytes) -> Credentials:
    return bearing(b"Bearer " + token)
