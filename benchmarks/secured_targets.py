"""kiseki with all of its security on, in several forms, and without: the servers of `python -m benchmarks security`."""

import asyncio
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from benchmarks.kiseki_target import lag_at
from benchmarks.processes import free_ports
from benchmarks.target import Target
from benchmarks.workload import Endpoint
from kiseki.application.system import SystemClock
from kiseki.kernel.audit import NoAudit
from kiseki.security.identity.claims import ClaimRules
from kiseki.security.identity.issuing import TokenIssuer
from kiseki.security.identity.keys import signing_key_from_pem, signing_key_from_secret
from tests.servers.certificates import Authority

ISSUER = "https://benchmark.example"
AUDIENCE = "kiseki"
TOKEN_SECONDS = 3_600
MOST_UNITS = 1_000_000
"""In 60 seconds, for a subject and for an address: counted on every request and never reached."""
PROXIES = "10.255.0.0/16"
"""Nobody here is in it: the load's own address is what is limited."""


@dataclass(frozen=True)
class SecuredTarget:
    """A server, and the tokens of its callers; none where everybody is believed."""

    target: Target
    tokens: Sequence[str] = ()


def unsecured(folder: Path) -> SecuredTarget:
    """No tokens, limits, list of hosts, audit log or security headers."""
    command_port, query_port, management_port = free_ports(3)
    management = f"http://127.0.0.1:{management_port}"
    ports = (str(command_port), str(query_port), str(management_port))
    return SecuredTarget(
        Target(
            arguments=(sys.executable, "-m", "benchmarks.unsecured_server", str(folder / "data"), *ports),
            ready_url=f"{management}/ready",
            command=Endpoint(command_port),
            query=Endpoint(query_port),
            lag=lambda: lag_at(f"{management}/metrics"),
        )
    )


def secured(folder: Path, *, subjects: int, tls: bool = False, redis_url: str | None = None) -> SecuredTarget:
    """`kiseki serve` in the production profile: tokens of HS256 and ES256, one for each of the subjects, in turn;
    limits in memory or in Redis, the audit log in files with anchors, a list of hosts, all headers."""
    command_port, query_port, management_port = free_ports(3)
    management = f"http://127.0.0.1:{management_port}"
    private = ec.generate_private_key(ec.SECP256R1())
    secret = secrets.token_urlsafe(48)
    public = _file(
        folder, "tokens.pem", private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    environment = {
        "KISEKI_PROFILE": "production",
        "KISEKI_LOG_LEVEL": "warning",
        "KISEKI_DRAIN_DELAY": "0",
        "KISEKI_MASTER_KEY": str(_file(folder, "master.key", os.urandom(32))),
        "KISEKI_TOKEN_ISSUER": ISSUER,
        "KISEKI_TOKEN_AUDIENCE": AUDIENCE,
        "KISEKI_TOKEN_SECRET": _file(folder, "token-secret", secret.encode()).as_uri(),
        "KISEKI_TOKEN_KEYS": str(public),
        "KISEKI_RATE_LIMIT": str(MOST_UNITS),
        "KISEKI_RATE_LIMIT_ADDRESS": str(MOST_UNITS),
        "KISEKI_HOSTS": "127.0.0.1,api.example.com",
        "KISEKI_AUDIT_SINKS": "file",
        "KISEKI_AUDIT_KEY": _file(folder, "audit-key", secrets.token_urlsafe(48).encode()).as_uri(),
        "KISEKI_AUDIT_ANCHORS": str(folder / "anchors"),
        "KISEKI_ERASURE_LEDGER": str(folder / "erasures"),
        **_transport(folder, tls=tls),
    }
    if redis_url is not None:
        environment["KISEKI_RATE_STORE"] = _file(folder, "rate-store", redis_url.encode()).as_uri()
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    tokens = asyncio.run(_tokens(secret.encode(), pem, subjects))
    authority = str(folder / "authority" / "test-authority.pem") if tls else None
    return SecuredTarget(
        Target(
            arguments=(
                *(sys.executable, "-m", "kiseki", "serve", "--data-dir", str(folder / "data")),
                *("--command-port", str(command_port)),
                *("--query-port", str(query_port)),
                *("--management-port", str(management_port)),
            ),
            environment=environment,
            ready_url=f"{management}/ready",
            command=Endpoint(command_port, token=tokens[0], authority=authority),
            query=Endpoint(query_port, token=tokens[0], authority=authority),
            lag=lambda: lag_at(f"{management}/metrics"),
        ),
        tokens,
    )


def _transport(folder: Path, *, tls: bool) -> Mapping[str, str]:
    if not tls:
        return {"KISEKI_TLS_PROXY": "true", "KISEKI_TRUSTED_PROXIES": PROXIES}
    directory = folder / "authority"
    directory.mkdir()
    pair = Authority(directory).issue(names=("127.0.0.1",))
    return {"KISEKI_TLS_CERTIFICATE": str(pair.certificate), "KISEKI_TLS_KEY": str(pair.key)}


async def _tokens(secret: bytes, pem: bytes, subjects: int) -> list[str]:
    rules = ClaimRules(issuer=ISSUER, audience=AUDIENCE, max_lifetime=TOKEN_SECONDS, leeway=30)
    issuers = [
        TokenIssuer(key, rules=rules, clock=SystemClock(), auditor=NoAudit(), production=False)
        for key in (signing_key_from_secret(secret), signing_key_from_pem(pem))
    ]
    return [
        (await issuers[number % 2].issue(f"load-{number}", roles={"admin"}, lifetime=TOKEN_SECONDS)).token
        for number in range(subjects)
    ]


def _file(folder: Path, name: str, content: bytes) -> Path:
    """A file that only its owner may read."""
    path = folder / name
    path.touch(mode=0o600)
    path.write_bytes(content)
    return path.absolute()
