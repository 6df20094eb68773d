"""`Production`: a service as it is run in production, for black-box tests: TLS, keys, audit and ledger on volumes of
their own, nothing of it in `data_dir`. And `Tokens`, which makes tokens, good and forged, without kiseki's own code.

with Production(folder) as service:
    reply = await service.graphql("query", "{ __typename }", token=service.tokens.admin())
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import secrets
import signal
import sqlite3
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from tests.e2e.client import Client, Reply
from tests.e2e.processes import Service
from tests.servers.certificates import Authority, replace
from tests.servers.processes import clean_environment

__all__ = ["AUDIENCE", "ISSUER", "Production", "TlsClient", "Tokens", "base64url", "segment"]

ISSUER: Final = "https://issuer.example"
AUDIENCE: Final = "kiseki"

Key: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def base64url(data: bytes) -> str:
    """Without padding, as in tokens."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def segment(part: object) -> str:
    """A segment of a token: JSON, or bytes as they are."""
    return base64url(part if isinstance(part, bytes) else json.dumps(part).encode())


class Tokens:
    """Keys of every algorithm, each with a `kid`, and tokens signed with them."""

    ALGORITHMS: Final = ("HS256", "RS256", "PS256", "ES256", "EdDSA")

    def __init__(self) -> None:
        self.secret = secrets.token_urlsafe(48)
        self.keys: dict[str, Key] = {
            "rs-1": rsa.generate_private_key(public_exponent=65537, key_size=2048),
            "ps-1": rsa.generate_private_key(public_exponent=65537, key_size=2048),
            "es-1": ec.generate_private_key(ec.SECP256R1()),
            "ed-1": ed25519.Ed25519PrivateKey.generate(),
        }

    def jwks(self, *names: str) -> bytes:
        """The public keys of these ids, of all unless some are named."""
        return json.dumps({"keys": [public_jwk(name, self.keys[name]) for name in names or self.keys]}).encode()

    def claims(self, subject: str = "somebody", *roles: str, **more: Any) -> dict[str, Any]:
        """Good claims, good for five minutes; what is None in `more` is left out."""
        now = int(time.time())
        given = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": subject,
            "iat": now,
            "exp": now + 300,
            "roles": list(roles),
            **more,
        }
        return {name: value for name, value in given.items() if value is not None}

    def sign(self, header: object, claims: object, *, key: Key | bytes, algorithm: str) -> str:
        """A token of any header and claims, as JSON or raw bytes, signed as the algorithm does."""
        signing_input = f"{segment(header)}.{segment(claims)}"
        return f"{signing_input}.{base64url(signature(signing_input.encode(), key, algorithm))}"

    def made(self, claims: object, algorithm: str = "ES256", **header: Any) -> str:
        """A token of an algorithm, with its key and key id."""
        key_id = {"RS256": "rs-1", "PS256": "ps-1", "ES256": "es-1", "EdDSA": "ed-1"}.get(algorithm)
        named = {"alg": algorithm, "typ": "JWT", **({} if key_id is None else {"kid": key_id}), **header}
        key = self.secret.encode() if key_id is None else self.keys[key_id]
        return self.sign(
            {name: value for name, value in named.items() if value is not None}, claims, key=key, algorithm=algorithm
        )

    def user(self, subject: str = "somebody", **more: Any) -> str:
        """Of a user."""
        return self.made(self.claims(subject, "user", **more))

    def admin(self, subject: str = "the-administrator", **more: Any) -> str:
        """Of an administrator."""
        return self.made(self.claims(subject, "admin", **more))


def signature(data: bytes, key: Key | bytes, algorithm: str) -> bytes:
    """As RFC 7518 and RFC 8037 have it."""
    if algorithm == "HS256":
        assert isinstance(key, bytes)
        return hmac.digest(key, data, hashlib.sha256)
    if algorithm == "ES256":
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32) + s.to_bytes(32)
    if algorithm == "EdDSA":
        assert isinstance(key, ed25519.Ed25519PrivateKey)
        return key.sign(data)
    assert isinstance(key, rsa.RSAPrivateKey)
    if algorithm == "PS256":
        return key.sign(data, padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256.digest_size), hashes.SHA256())
    return key.sign(data, padding.PKCS1v15(), hashes.SHA256())


def public_jwk(name: str, key: Key) -> dict[str, str]:
    """The public half of a key, as an entry of a JWKS."""
    about = {"kid": name, "use": "sig"}
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.public_key().public_numbers()
        modulus = numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8)
        algorithm = "PS256" if name.startswith("ps") else "RS256"
        return {**about, "kty": "RSA", "alg": algorithm, "n": base64url(modulus), "e": base64url(b"\x01\x00\x01")}
    if isinstance(key, ed25519.Ed25519PrivateKey):
        raw = key.public_key().public_bytes_raw()
        return {**about, "kty": "OKP", "alg": "EdDSA", "crv": "Ed25519", "x": base64url(raw)}
    point = key.public_key().public_numbers()
    coordinates = {"x": base64url(point.x.to_bytes(32)), "y": base64url(point.y.to_bytes(32))}
    return {**about, "kty": "EC", "alg": "ES256", "crv": "P-256", **coordinates}


class TlsClient(Client):
    """As Client, over TLS; answers to HEAD have no body."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        super().__init__(port)
        self._context = context
        self._bodiless = False

    async def request(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Reply:
        """As Client's. Raises OSError too, when there is no connection."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(
                "127.0.0.1", self._port, ssl=self._context, server_hostname="localhost"
            )
        self._bodiless = method == "HEAD"
        return await super().request(method, path, body, headers)

    async def _read(self, reader: asyncio.StreamReader) -> Reply:
        if not self._bodiless:
            return await super()._read(reader)
        head = asyncio.StreamReader()
        text = await reader.readuntil(b"\r\n\r\n")
        head.feed_data(text.lower().replace(b"content-length:", b"x-length:"))
        return await super()._read(head)


class Production:
    """`kiseki serve --profile production` in a folder: `data` is its data_dir, everything else is outside of it.

    `settings` are environment variables without KISEKI_, or None to leave one of those that it has out. Limits are out
    of the way unless they are given.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        workers: int = 1,
        environment: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.audit = folder / "audit"
        self.anchors = folder / "anchors"
        self.ledger = folder / "ledger"
        self.secrets = folder / "secrets"
        for made in (folder, self.anchors, self.ledger, self.secrets):
            made.mkdir(parents=True, exist_ok=True)
        self.tokens = Tokens()
        self.jwks = self.secrets / "jwks.json"
        replace(self.jwks, self.tokens.jwks())
        self.audit_secret = secrets.token_urlsafe(48)
        replace(self.secrets / "token", self.tokens.secret.encode())
        replace(self.secrets / "audit", self.audit_secret.encode())
        replace(self.secrets / "master", os.urandom(32))
        self.authority = Authority(self.secrets)
        self.certificate = self.authority.issue()
        self.context = self.authority.client()
        given = {
            "PROFILE": "production",
            "TOKEN_ISSUER": ISSUER,
            "TOKEN_AUDIENCE": AUDIENCE,
            "TOKEN_KEYS": self.jwks,
            "TOKEN_SECRET": f"file://{self.secrets / 'token'}",
            "TLS_CERTIFICATE": self.certificate.certificate,
            "TLS_KEY": self.certificate.key,
            "HOSTS": "127.0.0.1,localhost",
            "MASTER_KEY": self.secrets / "master",
            "AUDIT_DIR": self.audit,
            "AUDIT_KEY": f"file://{self.secrets / 'audit'}",
            "AUDIT_ANCHORS": self.anchors,
            "ERASURE_LEDGER": self.ledger,
            "RATE_LIMIT": 1_000_000,
            "RATE_LIMIT_ADDRESS": 1_000_000,
            "DRAIN_DELAY": 0,
            "READ_TIMEOUT": 1.5,
            "REVOCATION_POLL": 0.2,
            "SECRET_REFRESH": 1,
            "HEALTH_INTERVAL": 0.2,
            **settings,
        }
        if workers > 1:
            given["WORKERS"] = workers
        self.environment = {f"KISEKI_{name}": str(value) for name, value in given.items() if value is not None}
        self.environment |= environment or {}
        self.service = Service(self.data, *arguments, environment=self.environment)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Starts it and waits until it is ready."""
        self.service.start()
        try:
            asyncio.run(self.service.ready())
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Ends it as an operator does."""
        assert self.service.terminate() == 0, self.log()[-4_000:]

    def kill(self) -> None:
        """SIGKILL to all of its processes; no matter if it had ended."""
        if self.service.process is not None:
            self.service.kill()

    def port(self, api: str) -> int:
        """Of an API."""
        return self.service.command_port if api == "command" else self.service.query_port

    def client(self, api: str) -> TlsClient:
        """A connection to an API."""
        return TlsClient(self.port(api), self.context)

    async def graphql(
        self, api: str, query: str, variables: Any = None, *, token: str | None = None, **headers: str
    ) -> Reply:
        """Posts a document on a connection of its own."""
        bearer = {} if token is None else {"authorization": f"Bearer {token}"}
        async with asyncio.timeout(30), self.client(api) as client:
            return await client.graphql(query, variables, **bearer, **headers)

    async def get(self, path: str, *, api: str = "query", token: str | None = None, **headers: str) -> Reply:
        """Gets a path on a connection of its own."""
        bearer = {} if token is None else {"authorization": f"Bearer {token}"}
        async with asyncio.timeout(30), self.client(api) as client:
            return await client.request("GET", path, headers={**bearer, **headers})

    async def manage(self, path: str) -> Reply:
        """Gets a path of the management port."""
        async with asyncio.timeout(30), Client(self.service.management_port) as client:
            return await client.request("GET", path)

    async def raw(self, api: str, sent: bytes, *, seconds: float = 4.0, quiet: float = 0.5) -> bytes:
        """What comes back for these bytes, until the connection ends; or nothing comes for so many seconds, or nothing
        more for `quiet` seconds."""
        received = b""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port(api), ssl=self.context, server_hostname="localhost"
        )
        try:
            writer.write(sent)
            await writer.drain()
            while part := await asyncio.wait_for(reader.read(65_536), quiet if received else seconds):
                received += part
        except (TimeoutError, ConnectionResetError, ssl.SSLError):
            pass
        finally:
            writer.close()
        return received

    def log(self) -> str:
        """Everything that it has printed."""
        return self.service.log.read_text(encoding="utf-8", errors="replace")

    def commits(self) -> int:
        """How many commits the journal holds."""
        with closing(sqlite3.connect(f"{(self.data / 'journal.db').as_uri()}?mode=ro", uri=True)) as connection:
            return int(connection.execute("SELECT count(*) FROM commits").fetchone()[0])

    def records(self) -> list[dict[str, Any]]:
        """The records of the audit log as they stand in its files; a line that is being written is passed over."""
        lines = [
            line for path in sorted(self.audit.glob("audit-*.jsonl")) for line in path.read_bytes().split(b"\n")[:-1]
        ]
        return [json.loads(line) for line in lines]

    async def recorded(self, wanted: Callable[[dict[str, Any]], bool], *, seconds: float = 15.0) -> dict[str, Any]:
        """The first record that is as wanted, once it is there."""
        async with asyncio.timeout(seconds):
            while True:
                for record in self.records():
                    if wanted(record):
                        return record
                await asyncio.sleep(0.02)

    def kiseki(
        self, *arguments: str, data_dir: bool = True, **settings: str | None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command of kiseki with the settings of this service, changed by these."""
        changed = {f"KISEKI_{name}": value for name, value in settings.items()}
        environment = {name: value for name, value in {**self.environment, **changed}.items() if value is not None}
        where = ("--data-dir", str(self.data)) if data_dir else ()
        return subprocess.run(
            [sys.executable, "-m", "kiseki", *arguments, *where],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=clean_environment(environment),
        )

    def signal(self, how: signal.Signals) -> None:
        """Sends a signal to its first process."""
        assert self.service.process is not None
        self.service.process.send_signal(how)
