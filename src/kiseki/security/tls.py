"""TLS of the servers: which certificate, key and protocol versions are accepted, and changing them while it runs.

Used by the service, which hands the current context to each new connection. What is wrong with the files is refused at
the start, in one line that says which file and what to do; after the start the pair that works stays in use.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import stat
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from kiseki.kernel.errors import KisekiError
from kiseki.kernel.ports import AuditEvent, Auditor, Clock

__all__ = ["InvalidTls", "LoadedTls", "ReloadingTls", "TlsFiles", "load_tls"]

_log = logging.getLogger(__name__)

KeyPassword = bytes | Callable[[], bytes]
Signature = tuple[tuple[int, int, int, int], ...]

_LARGEST_FILE: Final = 1_048_576
_SMALLEST_RSA: Final = 2_048
_CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")
_SUITES_1_2: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""With forward secrecy and authenticated encryption; TLS 1.3 has no others."""
_EXPIRES_SOON: Final = timedelta(days=14)


class InvalidTls(KisekiError):
    """Certificate, key or trust store can't be used. The message says which file, why, and what to do."""

    code = "TLS_INVALID"


class TlsFiles:
    """Where certificate and key are. The password is in no `repr`.

    `certificate` holds the server's certificate first and then those that issued it, in PEM. `client_ca` makes
    certificates of clients a must: a PEM file of the authorities whose clients are let in. `minimum` is the lowest
    version of TLS.
    """

    __slots__ = ("certificate", "client_ca", "key", "minimum", "password")

    def __init__(
        self,
        *,
        certificate: Path,
        key: Path,
        password: KeyPassword | None = None,
        client_ca: Path | None = None,
        minimum: Literal["1.2", "1.3"] = "1.3",
    ) -> None:
        self.certificate: Final = certificate
        self.key: Final = key
        self.password: Final = password
        self.client_ca: Final = client_ca
        self.minimum: Final = minimum

    def __repr__(self) -> str:
        return f"TlsFiles(certificate={str(self.certificate)!r}, key={str(self.key)!r}, minimum={self.minimum!r})"

    def signature(self) -> Signature:
        """What changes when a file does, symbolic links followed. Raises OSError."""
        files = (self.certificate, self.key, *(() if self.client_ca is None else (self.client_ca,)))
        looked = [os.stat(file) for file in files]
        return tuple((seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns) for seen in looked)


class LoadedTls:
    """A pair in use."""

    __slots__ = ("context", "fingerprint", "not_after", "warnings")

    def __init__(
        self, context: ssl.SSLContext, *, fingerprint: str, not_after: datetime, warnings: tuple[str, ...]
    ) -> None:
        self.context: Final = context
        self.fingerprint: Final = fingerprint
        """SHA-256 of the certificate, hexadecimal."""
        self.not_after: Final = not_after
        """When the certificate, or one of its issuers in the file, ends, UTC."""
        self.warnings: Final = warnings
        """What works and still is not what production should have."""


def load_tls(files: TlsFiles, *, now: datetime) -> LoadedTls:
    """Checks the files and makes the context of servers. Raises InvalidTls."""
    password = (files.password() if callable(files.password) else files.password) or None
    chain = _chain(files.certificate, now)
    leaf = chain[0]
    _match(leaf, files, password)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2 if files.minimum == "1.2" else ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.options |= (
        ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_TICKET
    )
    # A ticket would outlive a changed key or a revoked client; connections are kept, so handshakes are rare.
    context.num_tickets = 0
    context.set_ciphers(_SUITES_1_2)
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Always with a function: without one, OpenSSL asks the terminal for the password of an encrypted key.
        context.load_cert_chain(files.certificate, files.key, password=lambda: password or b"")
    except (ssl.SSLError, OSError) as problem:
        reason = getattr(problem, "reason", None) or "it can't be read"
        raise InvalidTls(f"the certificate {files.certificate} is not accepted: {reason}; give another") from None
    if files.client_ca is not None:
        _require_clients(context, files.client_ca)
    return LoadedTls(
        context,
        fingerprint=leaf.fingerprint(hashes.SHA256()).hex(),
        not_after=min(certificate.not_valid_after_utc for certificate in chain),
        warnings=_warnings(leaf, files),
    )


class ReloadingTls:
    """The pair in use, exchanged when its files change. One for each process; not shared between threads.

    New connections get the new pair, those that are open go on. A new pair that can't be used is logged and audited
    once for each change of the files, and the old one stays.
    """

    def __init__(self, files: TlsFiles, *, clock: Clock, auditor: Auditor | None = None, interval: float = 5.0) -> None:
        """Loads the pair. `interval` is in seconds. Raises InvalidTls."""
        self._files = files
        self._clock = clock
        self._auditor = auditor
        self._interval = interval
        self._signature, self._loaded = self._load()
        self._failing: Signature | None = None
        self._told: Signature | None = None
        self._told_end = self._end()
        self.problem: str | None = None
        """Why the files that are there now are not in use; None when they are. For readiness and metrics."""

    @property
    def context(self) -> ssl.SSLContext:
        """For the next connection."""
        return self._loaded.context

    @property
    def loaded(self) -> LoadedTls:
        """The pair in use."""
        return self._loaded

    @property
    def seconds_left(self) -> float:
        """How long the certificate is still valid; negative when it has expired. For a metric."""
        return (self._loaded.not_after - self._clock.now()).total_seconds()

    @property
    def expires_soon(self) -> bool:
        """Whether it ends within 14 days."""
        return self.seconds_left < _EXPIRES_SOON.total_seconds()

    async def watch_forever(self) -> None:
        """Looks at the files every interval, until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            await self.look()

    async def look(self) -> bool:
        """Looks at the files now; returns whether a new pair is in use. Never raises."""
        self._tell_end()
        try:
            signature = await asyncio.to_thread(self._files.signature)
            if signature == self._signature:
                self._failing = self.problem = None
                return False
            loaded_signature, loaded = await asyncio.to_thread(self._load)
        except (InvalidTls, OSError) as problem:
            self._failed(problem)
            return False
        except Exception as problem:  # noqa: BLE001  # whatever the files hold, the pair that works stays
            # What the error says might be a part of a key or its password.
            self._failed(InvalidTls(f"the changed files can't be looked at ({type(problem).__name__})"))
            return False
        before, self._signature, self._loaded = self._loaded, loaded_signature, loaded
        self._failing = self._told = self.problem = None
        self._told_end = self._end()
        _log.info("a new certificate is in use, valid until %s", loaded.not_after.isoformat())
        self._note("done", f"fingerprint {before.fingerprint[:16]} became {loaded.fingerprint[:16]}")
        return True

    def _end(self) -> int:
        """How near the end is: 0 not near, 1 soon, 2 over."""
        return int(self.expires_soon) + int(self.seconds_left < 0)

    def _tell_end(self) -> None:
        """Says that the end comes near, and that it came, once each: a process that runs for months has no start."""
        before, self._told_end = self._told_end, self._end()
        if self._told_end <= before:
            return
        path, when = self._files.certificate, f"{self._loaded.not_after:%Y-%m-%d %H:%M} UTC"
        if self.seconds_left < 0:
            _log.error("the certificate in %s expired on %s, and clients refuse it; renew it", path, when)
        else:
            _log.warning("the certificate in %s ends on %s; renew it", path, when)

    def _load(self) -> tuple[Signature, LoadedTls]:
        try:
            before = self._files.signature()
            loaded = load_tls(self._files, now=self._clock.now())
            after = self._files.signature()
        except OSError as problem:
            raise InvalidTls(
                f"{problem.filename} can't be read: {problem.strerror}; change `tls_certificate` or `tls_key`"
            ) from None
        if before != after:
            raise InvalidTls("the files of certificate and key changed while they were read; replace them by renaming")
        return after, loaded

    def _failed(self, problem: Exception) -> None:
        text = str(problem) if isinstance(problem, InvalidTls) else "a file of certificate or key is missing"
        try:
            signature: Signature | None = self._files.signature()
        except OSError:
            signature = ()
        self.problem = text
        # Two files can't be changed in one step: between them they don't match. What is told has stayed for a while.
        if signature != self._failing:
            self._failing = signature
        elif signature != self._told:
            self._told = signature
            _log.error("the new certificate is not used, the one before stays: %s", text)
            self._note("failed", "the changed files can't be used; the certificate before stays in use")

    def _note(self, outcome: str, detail: str) -> None:
        if self._auditor is not None:
            self._auditor.note(AuditEvent(kind="certificate.reloaded", outcome=outcome, detail=detail))


def _chain(path: Path, now: datetime) -> list[x509.Certificate]:
    try:
        chain = x509.load_pem_x509_certificates(_read(path, "certificate"))
        for number, certificate in enumerate(chain, 1):
            _valid(certificate, path, now, number)
        for number, (certificate, issuer) in enumerate(pairwise(chain), 2):
            try:
                certificate.verify_directly_issued_by(issuer)
            except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
                raise InvalidTls(
                    f"certificate {number} in {path} did not issue the one before it; put the server's first, then "
                    "its issuers in order"
                ) from None
        _fit_for_servers(chain[0], path)
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension):
        raise InvalidTls(f"{path} holds no certificate in PEM that can be read; change `tls_certificate`") from None
    return chain


def _valid(certificate: x509.Certificate, path: Path, now: datetime, number: int) -> None:
    which = f"the certificate in {path}" if number == 1 else f"certificate {number} in {path}"
    if now < certificate.not_valid_before_utc:
        raise InvalidTls(
            f"{which} is valid only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC; check this machine's "
            "clock or give another"
        )
    if now > certificate.not_valid_after_utc:
        raise InvalidTls(
            f"{which} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; give one that is valid"
        )


def _fit_for_servers(leaf: x509.Certificate, path: Path) -> None:
    extensions = leaf.extensions
    authority = _extension(extensions, x509.BasicConstraints)
    # One that signed itself may say so: that is how tools make certificates for a try.
    if authority is not None and authority.ca and leaf.issuer != leaf.subject:
        raise InvalidTls(f"the first certificate in {path} is an authority's; put the server's certificate first")
    usage = _extension(extensions, x509.ExtendedKeyUsage)
    if usage is not None and not {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & {
        *usage
    }:
        raise InvalidTls(f"the certificate in {path} is not made for servers; give one with the usage serverAuth")
    key = leaf.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < _SMALLEST_RSA:
            raise InvalidTls(
                f"the key of the certificate in {path} is too weak: RSA with {key.key_size} bits; use {_SMALLEST_RSA} "
                "or more, or an elliptic curve"
            )
    elif isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in _CURVES:
            raise InvalidTls(
                f"the key of the certificate in {path} is on the curve {key.curve.name}; use P-256, P-384 or P-521"
            )
    elif not isinstance(key, (ed25519.Ed25519PublicKey, ed448.Ed448PublicKey)):
        raise InvalidTls(f"the key of the certificate in {path} is of a kind that TLS 1.3 has not; use ECDSA or RSA")


def _match(leaf: x509.Certificate, files: TlsFiles, password: bytes | None) -> None:
    """Refuses a key that is not the certificate's, that others may read, or that can't be opened."""
    pem = _read(files.key, "key")
    mode = os.stat(files.key).st_mode
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise InvalidTls(
            f"others may read or change the key {files.key} (mode {stat.S_IMODE(mode):04o}); chmod it to 0600 or 0640"
        )
    try:
        key: Any = load_pem_private_key(pem, password)
    except TypeError:
        hint = (
            "is encrypted; give its password in `tls_key_password`"
            if password is None
            else "is not encrypted, although `tls_key_password` is set; leave it out or encrypt the key"
        )
        raise InvalidTls(f"the key {files.key} {hint}") from None
    except (ValueError, UnsupportedAlgorithm):
        what = "holds no private key in PEM" if password is None else "can't be opened with `tls_key_password`"
        raise InvalidTls(f"the key {files.key} {what}; change `tls_key`") from None
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
        raise InvalidTls(
            f"the key {files.key} does not belong to the certificate {files.certificate}; give the two that were made "
            "together"
        )


def _require_clients(context: ssl.SSLContext, path: Path) -> None:
    _read(path, "trust store")
    try:
        context.load_verify_locations(cafile=path)
    except (ssl.SSLError, OSError):
        raise InvalidTls(f"{path} holds no certificate in PEM that can be read; change `tls_client_ca`") from None
    if not context.get_ca_certs():
        raise InvalidTls(f"{path} holds no authority's certificate; change `tls_client_ca`")
    context.verify_mode = ssl.CERT_REQUIRED


def _warnings(leaf: x509.Certificate, files: TlsFiles) -> tuple[str, ...]:
    found = []
    if leaf.issuer == leaf.subject:
        found.append(f"the certificate in {files.certificate} signed itself; clients trust one of a known authority")
    if _extension(leaf.extensions, x509.SubjectAlternativeName) is None:
        found.append(f"the certificate in {files.certificate} names no host (subjectAltName); clients will refuse it")
    if files.minimum != "1.3":
        found.append("TLS 1.2 is allowed by `tls_minimum`")
    return tuple(found)


def _extension(extensions: x509.Extensions, kind: type[Any]) -> Any:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _read(path: Path, what: str) -> bytes:
    """At most a megabyte of a regular file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InvalidTls(f"the {what} {path} is no file; give the path of a PEM file")
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except OSError as problem:
        raise InvalidTls(
            f"the {what} {path} can't be read: {problem.strerror}; check the path and its permissions"
        ) from None
    if len(content) > _LARGEST_FILE:
        raise InvalidTls(f"the {what} {path} is larger than {_LARGEST_FILE} bytes, which no PEM file is")
    return content
