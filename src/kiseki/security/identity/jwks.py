"""Reads a JSON Web Key Set (RFC 7517). Used by the sources that have one in a file or at a URL.

One entry that can't be used never harms the others: it is left out, and a line of the log says why.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicNumbers
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers

from kiseki.security.identity.compact import ALGORITHMS, is_key_id, unbase64url
from kiseki.security.identity.keys import (
    MAX_CANDIDATES,
    MAX_RSA_BITS,
    KeyRefused,
    KeySet,
    VerificationKey,
    algorithm_for,
    secret_key,
    verification_key,
)
from kiseki.security.identity.strict_json import strict_object

__all__ = ["MAX_ENTRIES", "MAX_JWKS_BYTES", "parse_jwks"]

MAX_JWKS_BYTES: Final = 512 * 1024
MAX_ENTRIES: Final = 100

_DEPTH: Final = 8
_PRIVATE: Final = ("d", "p", "q", "dp", "dq", "qi", "oth")
_POINT_BYTES: Final = 32

_log = logging.getLogger(__name__)


def parse_jwks(
    document: bytes,
    *,
    where: str,
    algorithms: Collection[str] = ALGORITHMS,
    rsa_algorithm: str = "RS256",
    secrets: bool = False,
) -> KeySet:
    """The usable keys of a document; `where` names it in messages.

    `algorithms` is the allow list; `rsa_algorithm` that of RSA keys without `alg`; `secrets`: whether HS256 secrets may
    be in it, which nobody else may then read. Raises KeyRefused when it is no key set, or has no usable key.
    """
    if len(document) > MAX_JWKS_BYTES:
        raise KeyRefused(f"the key set {where} has more than {MAX_JWKS_BYTES} bytes")
    try:
        entries = strict_object(document, depth=_DEPTH).get("keys")
    except ValueError:
        raise KeyRefused(f"the key set {where} is no strict JSON object") from None
    if not isinstance(entries, list) or len(entries) > MAX_ENTRIES:
        raise KeyRefused(f"the key set {where} has no list `keys` of at most {MAX_ENTRIES} entries")
    keys: list[VerificationKey] = []
    for number, entry in enumerate(entries):
        try:
            key = _key(entry, algorithms, rsa_algorithm, secrets=secrets)
            if key.key_id is not None and any(key.key_id == each.key_id for each in keys):
                raise KeyRefused("another entry has its kid")
            if key.key_id is None and sum(each.key_id is None for each in keys) >= MAX_CANDIDATES:
                raise KeyRefused(f"it has no kid, and neither have {MAX_CANDIDATES} others")
        except KeyRefused as problem:
            _log.warning("key set %s: entry %d is left out: %s", where, number, problem)
        else:
            keys.append(key)
    if not keys:
        raise KeyRefused(f"the key set {where} has no key that can be used; see the log")
    return KeySet(keys)


def _key(entry: object, algorithms: Collection[str], rsa_algorithm: str, *, secrets: bool) -> VerificationKey:
    if not isinstance(entry, dict):
        raise KeyRefused("it is no object")
    key_type = entry.get("kty")
    if key_type not in ("RSA", "EC", "OKP", "oct"):
        raise KeyRefused("its kty is not RSA, EC or OKP")
    if entry.get("use", "sig") != "sig":
        raise KeyRefused("its use is not sig")
    operations = entry.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise KeyRefused("its key_ops do not have verify")
    if any(name in entry for name in _PRIVATE):
        raise KeyRefused("it shows a private key; that key has to be replaced")
    wanted = entry.get("alg")
    if wanted is not None and wanted not in ALGORITHMS:
        raise KeyRefused(f"its alg is not one of {', '.join(ALGORITHMS)}")
    key_id = entry.get("kid")
    if key_id is not None and not is_key_id(key_id):
        raise KeyRefused("its kid is not 1 to 128 printable ASCII characters")
    if key_type == "oct":
        if not secrets:
            raise KeyRefused("it is a secret, and others may read this key set")
        if wanted != "HS256":
            raise KeyRefused("its alg is not HS256")
        key = secret_key(_bytes(entry, "k"), key_id=key_id)
    else:
        algorithm = algorithm_for(key_type, wanted or (rsa_algorithm if key_type == "RSA" else None))
        key = verification_key(_public(entry, key_type), algorithm=algorithm, key_id=key_id)
    if key.algorithm not in algorithms:
        raise KeyRefused(f"{key.algorithm} is not on the list of algorithms of the settings")
    return key


def _public(entry: dict[str, Any], key_type: str) -> object:
    try:
        if key_type == "RSA":
            modulus, exponent = _number(entry, "n"), _number(entry, "e")
            if modulus.bit_length() > MAX_RSA_BITS:
                raise KeyRefused(f"an RSA key has at most {MAX_RSA_BITS} bits")
            return RSAPublicNumbers(exponent, modulus).public_key()
        if key_type == "EC":
            if entry.get("crv") != "P-256":
                raise KeyRefused("its crv is not P-256")
            x, y = _coordinate(entry, "x"), _coordinate(entry, "y")
            return EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), SECP256R1()).public_key()
        if entry.get("crv") != "Ed25519":
            raise KeyRefused("its crv is not Ed25519")
        return Ed25519PublicKey.from_public_bytes(_coordinate(entry, "x"))
    except (ValueError, UnsupportedAlgorithm):
        raise KeyRefused("its numbers are no public key") from None


def _number(entry: dict[str, Any], name: str) -> int:
    return int.from_bytes(_bytes(entry, name))


def _coordinate(entry: dict[str, Any], name: str) -> bytes:
    found = _bytes(entry, name)
    if len(found) != _POINT_BYTES:
        raise KeyRefused(f"its {name} has not {_POINT_BYTES} bytes")
    return found


def _bytes(entry: dict[str, Any], name: str) -> bytes:
    value = entry.get(name)
    if not isinstance(value, str) or not value.isascii():
        raise KeyRefused(f"its {name} is missing or no base64url")
    try:
        return unbase64url(value.encode())
    except ValueError:
        raise KeyRefused(f"its {name} is no canonical base64url") from None
