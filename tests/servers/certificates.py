"""`Authority`: a certificate authority for tests, and the certificates and keys that it issues into files."""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

DAY = datetime.timedelta(days=1)


class Pair(NamedTuple):
    """Files in PEM."""

    certificate: Path
    key: Path


class Authority:
    """Issues certificates. `trust` is the file that clients trust; `issuer` makes this one an intermediate."""

    def __init__(self, directory: Path, name: str = "Test Authority", *, issuer: Authority | None = None) -> None:
        self.directory = directory
        self.key: Key = ec.generate_private_key(ec.SECP256R1())
        self.certificate: x509.Certificate = _build(
            name,
            key=self.key,
            signer=self if issuer is None else issuer,
            issuer_name=_name(name) if issuer is None else issuer.certificate.subject,
            begins=_now() - DAY,
            ends=_now() + 3650 * DAY,
            authority=True,
        )
        self.chain: list[x509.Certificate] = [] if issuer is None else [self.certificate, *issuer.chain]
        self.trust = directory / f"{name.lower().replace(' ', '-')}.pem"
        self.trust.write_bytes(self.certificate.public_bytes(Encoding.PEM))

    def issue(
        self,
        file: str = "server",
        *,
        names: Sequence[str] = ("localhost", "127.0.0.1", "::1"),
        key: Key | None = None,
        begins: datetime.datetime | None = None,
        ends: datetime.datetime | None = None,
        usage: x509.ObjectIdentifier | None = ExtendedKeyUsageOID.SERVER_AUTH,
        authority: bool = False,
        password: bytes | None = None,
    ) -> Pair:
        """Writes `<file>.pem` and `<file>.key`, each exchanged in one step."""
        made: Key = ec.generate_private_key(ec.SECP256R1()) if key is None else key
        certificate = _build(
            file,
            key=made,
            signer=self,
            issuer_name=self.certificate.subject,
            begins=begins or _now() - DAY,
            ends=ends or _now() + 90 * DAY,
            names=names,
            usage=usage,
            authority=authority,
        )
        pair = Pair(self.directory / f"{file}.pem", self.directory / f"{file}.key")
        replace(pair.certificate, b"".join(one.public_bytes(Encoding.PEM) for one in (certificate, *self.chain)))
        encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
        replace(pair.key, made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
        return pair

    def client(self, pair: Pair | None = None, *, maximum: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """A context of clients that trust this authority, with a certificate of their own if given."""
        context = ssl.create_default_context(cafile=self.trust)
        if maximum is not None:
            context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
            context.maximum_version = maximum
            context.set_ciphers("ALL:@SECLEVEL=0")
        if pair is not None:
            context.load_cert_chain(pair.certificate, pair.key)
        return context


def replace(path: Path, content: bytes) -> None:
    """Writes a file that only its owner may read, by renaming."""
    fresh = path.with_suffix(f"{path.suffix}.new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    fresh.rename(path)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _build(
    name: str,
    *,
    key: Key,
    signer: Authority,
    issuer_name: x509.Name,
    begins: datetime.datetime,
    ends: datetime.datetime,
    names: Sequence[str] = (),
    usage: x509.ObjectIdentifier | None = None,
    authority: bool = False,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()),
            critical=False,
        )
    )
    if authority:
        builder = builder.add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=True,
                crl_sign=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general(one) for one in names]), critical=False)
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    return builder.sign(signer.key, hashes.SHA256())


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
