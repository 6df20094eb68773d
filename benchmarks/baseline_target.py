"""The servers that kiseki is compared with: the ordinary stack in two settings, and the bare server."""

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.baseline_environment import baseline_python
from benchmarks.processes import REPOSITORY, free_ports
from benchmarks.target import Target
from benchmarks.workload import Endpoint

TOKEN_SECONDS = 3600
RATE_LIMIT = "100000000/minute"  # checked on every request and never reached


def ordinary(folder: Path) -> Target:
    """FastAPI and Strawberry as they come."""
    return _ordinary(folder, graphql_caches="off")


def ordinary_cached(folder: Path) -> Target:
    """The same with Strawberry's parser and validation caches."""
    return _ordinary(folder, graphql_caches="on")


def bare(_folder: Path) -> Target:
    """uvicorn around a constant answer: the ceiling of any server on it."""
    (port,) = free_ports(1)
    return Target(
        arguments=_uvicorn(port, "benchmarks.bare:app"),
        ready_url=f"http://127.0.0.1:{port}/",
        command=Endpoint(port),
    )


def _ordinary(folder: Path, *, graphql_caches: str) -> Target:
    (port,) = free_ports(1)
    secret = secrets.token_hex(32)
    endpoint = Endpoint(port, token=_token(secret))
    return Target(
        arguments=_uvicorn(port, "--factory", "benchmarks.baseline.app:create_app"),
        environment={
            "BASELINE_DATABASE": str(folder / "baseline.db"),
            "BASELINE_JWT_SECRET": secret,
            "BASELINE_GRAPHQL_CACHES": graphql_caches,
            "BASELINE_RATE_LIMIT": RATE_LIMIT,
        },
        ready_url=f"http://127.0.0.1:{port}/api/health",
        command=endpoint,
        query=endpoint,
    )


def _uvicorn(port: int, *application: str) -> Sequence[str]:
    return (
        *(str(baseline_python()), "-m", "uvicorn", "--app-dir", str(REPOSITORY), *application),
        *("--host", "127.0.0.1", "--port", str(port), "--loop", "uvloop", "--http", "httptools"),
        *("--no-access-log", "--log-level", "warning"),
    )


def _token(secret: str) -> str:
    """A JWT (RFC 7519) that the ordinary stack accepts for the length of a run."""
    now = int(time.time())
    claims = {"iss": "baseline", "aud": "baseline", "sub": "load", "iat": now, "exp": now + TOKEN_SECONDS}
    signed = f"{_segment({'alg': 'HS256', 'typ': 'JWT'})}.{_segment(claims)}"
    signature = hmac.digest(secret.encode(), signed.encode(), hashlib.sha256)
    return f"{signed}.{_base64url(signature)}"


def _segment(values: Mapping[str, object]) -> str:
    return _base64url(json.dumps(values, separators=(",", ":")).encode())


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
