"""Keys that tokens are verified and issued with: each has exactly one algorithm, and weak ones are refused.

Used by the key sources, the verifier and the issuer. joserfc computes and checks the signatures.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from kiseki.kernel.errors import KisekiError
from kiseki.security.identity.compact import ALGORITHMS, is_key_id
from kiseki.security.identity.secret_strength import weakness

__all__ = [
    "MAX_CANDIDATES",
    "KeyRefused",
    "KeySet",
    "SigningKey",
    "VerificationKey",
    "algorithm_for",
    "secret_key",
    "signing_key_from_pem",
    "signing_key_from_secret",
    "verification_key",
    "verification_key_from_pem",
]

PublicKey: TypeAlias = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey
PrivateKey: TypeAlias = RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey
_JoseKey: TypeAlias = OctKey | RSAKey | ECKey | OKPKey

MAX_CANDIDATES: Final = 4
"""Keys that are tried for one token when no key id tells which."""

MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192
_MIN_EXPONENT: Final = 65537  # FIPS 186-5, section 5.1
_MAX_EXPONENT_BITS: Final = 32
_PEM: Final = b"-----BEGIN "

# Points whose order is small, in every encoding: signatures for them can be made without a private key.
_SMALL_ORDER: Final = frozenset(
    bytes.fromhex(start + "00" * (31 - len(start) // 2) + end if len(start) < 62 else start + end)
    for start, ends in (
        ("01", ("00", "80")),
        ("00", ("00", "80")),
        ("ec" + "ff" * 30, ("7f", "ff")),
        ("ed" + "ff" * 30, ("7f", "ff")),
        ("ee" + "ff" * 30, ("7f", "ff")),
        ("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc", ("05", "85")),
        ("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03", ("7a", "fa")),
    )
    for end in ends
)


class KeyRefused(KisekiError):
    """A key is weak, of the wrong kind, or can't be read. The message shows nothing of the key."""

    code = "KEY_REFUSED"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class VerificationKey:
    """One key with its one algorithm. Compared by identity, shown without the key."""

    algorithm: str
    key_id: str | None
    thumbprint: str
    """RFC 7638, of the public key; of a secret, empty: its hash would be a place to test guesses."""
    _key: _JoseKey

    def verifies(self, signing_input: bytes, signature: bytes) -> bool:
        """Whether the signature is this key's. Takes as long for every wrong one of an algorithm with secrets."""
        return JWSRegistry.algorithms[self.algorithm].verify(signing_input, signature, self._key)

    def __repr__(self) -> str:
        return f"VerificationKey({self.algorithm}, {self.key_id or 'no id'})"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class SigningKey:
    """What tokens are issued with; shown without the key."""

    verification: VerificationKey
    _key: _JoseKey

    @property
    def algorithm(self) -> str:
        """Of the key."""
        return self.verification.algorithm

    @property
    def key_id(self) -> str | None:
        """The `kid` of its tokens."""
        return self.verification.key_id

    def sign(self, signing_input: bytes) -> bytes:
        """The signature."""
        return JWSRegistry.algorithms[self.algorithm].sign(signing_input, self._key)

    def __repr__(self) -> str:
        return f"SigningKey({self.algorithm}, {self.key_id or 'no id'})"


class KeySet:
    """Keys by their ids. Frozen: a rotation is another set."""

    def __init__(self, keys: Iterable[VerificationKey]) -> None:
        """Raises KeyRefused when two keys have one id, or more than four of one algorithm have none."""
        self._by_id: dict[str, VerificationKey] = {}
        self._by_algorithm: dict[str, list[VerificationKey]] = {}
        self._without_id: dict[str, list[VerificationKey]] = {}
        self.keys = tuple(keys)
        for key in self.keys:
            self._by_algorithm.setdefault(key.algorithm, []).append(key)
            if key.key_id is None:
                self._without_id.setdefault(key.algorithm, []).append(key)
            elif key.key_id in self._by_id:
                raise KeyRefused(f"two keys have the key id {key.key_id}; give each its own")
            else:
                self._by_id[key.key_id] = key
        for algorithm, many in self._without_id.items():
            if len(many) > MAX_CANDIDATES:
                raise KeyRefused(f"more than {MAX_CANDIDATES} {algorithm} keys have no key id; give each its own")
        self.fingerprint = frozenset((key.algorithm, key.key_id, key.thumbprint) for key in self.keys)
        """Equal for sets that accept the same tokens, secrets apart."""

    def find(self, algorithm: str, key_id: str | None) -> Sequence[VerificationKey] | None:
        """The keys to try, at most four, each of them of some algorithm of its own; None when there are none.

        A key id says which key it is; keys without an id are tried for ids that no key has. Without a key id all keys
        of the algorithm are tried, unless those are more than four.
        """
        if key_id is None:
            found = self._by_algorithm.get(algorithm)
            return found if found and len(found) <= MAX_CANDIDATES else None
        known = self._by_id.get(key_id)
        return (known,) if known is not None else self._without_id.get(algorithm)


def secret_key(secret: bytes, *, key_id: str | None = None) -> VerificationKey:
    """An HS256 key. Raises KeyRefused for a secret that can be guessed."""
    wrong = weakness(secret)
    if wrong is not None:
        raise KeyRefused(f"the secret of HS256 {wrong}; make one with `openssl rand -base64 33`")
    return VerificationKey("HS256", _checked_id(key_id), "", OctKey.import_key(secret))


def verification_key(public: object, *, algorithm: str | None = None, key_id: str | None = None) -> VerificationKey:
    """A key of cryptography's with the algorithm that its type has (an RSA key: RS256 unless PS256 is named).

    Raises KeyRefused for a weak key or another algorithm.
    """
    if isinstance(public, RSAPublicKey):
        _check_rsa(public)
        return _made(RSAKey.import_key(public), algorithm_for("RSA", algorithm), key_id)
    if isinstance(public, EllipticCurvePublicKey):
        if not isinstance(public.curve, SECP256R1):
            raise KeyRefused(f"an elliptic curve key is on P-256, not {public.curve.name}")
        return _made(ECKey.import_key(public), algorithm_for("EC", algorithm), key_id)
    if isinstance(public, Ed25519PublicKey):
        if public.public_bytes_raw() in _SMALL_ORDER:
            raise KeyRefused("an Ed25519 key is a point of small order, which anybody can sign for")
        return _made(OKPKey.import_key(public), algorithm_for("OKP", algorithm), key_id)
    raise KeyRefused("a key is RSA, P-256 or Ed25519")


def algorithm_for(key_type: str, wanted: str | None) -> str:
    """The one algorithm of a key of this type (`kty`). Raises KeyRefused when `wanted` does not fit."""
    fitting = {"RSA": ("RS256", "PS256"), "EC": ("ES256",), "OKP": ("EdDSA", "Ed25519")}[key_type]
    if wanted is None:
        return fitting[0]
    if wanted not in fitting:
        raise KeyRefused(f"a key of type {key_type} is used with {' or '.join(fitting)}")
    return wanted


def verification_key_from_pem(
    pem: bytes, *, algorithm: str | None = None, key_id: str | None = None
) -> VerificationKey:
    """The public key in a PEM text (SubjectPublicKeyInfo). Raises KeyRefused."""
    if pem.count(_PEM) != 1:
        raise KeyRefused("a public key file holds one PEM block, `-----BEGIN PUBLIC KEY-----`")
    if b"PRIVATE KEY" in pem:
        raise KeyRefused("a public key was expected and a private one found; `openssl pkey -pubout` makes the public")
    if b"CERTIFICATE" in pem:
        raise KeyRefused(
            "a public key was expected and a certificate found; `openssl x509 -pubkey -noout` takes it out"
        )
    try:
        public = load_pem_public_key(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyRefused("the public key is no PEM that can be read") from None
    return verification_key(public, algorithm=algorithm, key_id=key_id)


def signing_key_from_pem(pem: bytes, *, algorithm: str | None = None, key_id: str | None = None) -> SigningKey:
    """The private key in a PEM text without a password. Raises KeyRefused."""
    if pem.count(_PEM) != 1 or b"PRIVATE KEY" not in pem:
        raise KeyRefused("a private key file holds one PEM block, `-----BEGIN PRIVATE KEY-----`")
    try:
        private = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyRefused("the private key is no PEM without a password that can be read") from None
    if not isinstance(private, RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey):
        raise KeyRefused("a key is RSA, P-256 or Ed25519")
    verification = verification_key(private.public_key(), algorithm=algorithm, key_id=key_id)
    return SigningKey(verification, _private(private))


def signing_key_from_secret(secret: bytes, *, key_id: str | None = None) -> SigningKey:
    """An HS256 key to issue with. Raises KeyRefused."""
    verification = secret_key(secret, key_id=key_id)
    return SigningKey(verification, OctKey.import_key(secret))


def allowed(keys: Iterable[VerificationKey], algorithms: Collection[str]) -> list[VerificationKey]:
    """Those keys whose algorithm is on the allow list. Raises KeyRefused for an algorithm nobody knows."""
    for name in algorithms:
        if name not in ALGORITHMS:
            raise KeyRefused(f"algorithms are {', '.join(ALGORITHMS)}")
    return [key for key in keys if key.algorithm in algorithms]


def _private(private: PrivateKey) -> _JoseKey:
    if isinstance(private, RSAPrivateKey):
        return RSAKey.import_key(private)
    if isinstance(private, EllipticCurvePrivateKey):
        return ECKey.import_key(private)
    return OKPKey.import_key(private)


def _check_rsa(public: RSAPublicKey) -> None:
    numbers = public.public_numbers()
    if not MIN_RSA_BITS <= numbers.n.bit_length() <= MAX_RSA_BITS:
        raise KeyRefused(f"an RSA key has {MIN_RSA_BITS} to {MAX_RSA_BITS} bits, not {numbers.n.bit_length()}")
    exponent = numbers.e
    if exponent < _MIN_EXPONENT or exponent % 2 == 0 or exponent.bit_length() > _MAX_EXPONENT_BITS:
        raise KeyRefused(
            f"the exponent of an RSA key is odd, {_MIN_EXPONENT} or more, and below 2^{_MAX_EXPONENT_BITS}"
        )
    if numbers.n % 2 == 0:
        raise KeyRefused("the modulus of an RSA key is odd")


def _made(key: RSAKey | ECKey | OKPKey, algorithm: str, key_id: str | None) -> VerificationKey:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            JWSRegistry.algorithms[algorithm].check_key(key)
    except JoseError:
        raise KeyRefused(f"the key is not usable with {algorithm}") from None
    return VerificationKey(algorithm, _checked_id(key_id), key.thumbprint(), key)


def _checked_id(key_id: str | None) -> str | None:
    if key_id is not None and not is_key_id(key_id):
        raise KeyRefused("a key id is 1 to 128 printable ASCII characters")
    return key_id
