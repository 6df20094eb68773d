"""What is unsafe about secrets and connections to stores, for `kiseki check --deploy` and the production profile."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from kiseki.security.secrets.reference import SecretReference, SecretReferenceInvalid

__all__ = [
    "Finding",
    "aws_findings",
    "connection_findings",
    "is_inside",
    "master_key_findings",
    "place_findings",
    "secret_findings",
    "vault_findings",
]

_AWS_SCHEMES: Final = frozenset({"dynamodb", "aws-kms", "aws-sm"})


class Finding(NamedTuple):
    """Something unsafe, and how to mend it. Never shows a value."""

    name: str
    """Stable, lower case with dots."""
    problem: str
    remedy: str


def connection_findings(url: str) -> list[Finding]:
    """What is unsafe about the URL of a store; of an embedded one, nothing."""
    try:
        parts = urlsplit(url)
        parameters = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        _ = parts.port
    except ValueError:
        # Hosts of a list have ports that urlsplit can't read.
        parts = SplitResult(*_split(url))
        parameters = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    if parts.scheme in ("postgresql", "postgres"):
        return _postgres(parts, parameters)
    if parts.scheme in ("redis", "rediss"):
        return _redis(parts)
    if parts.scheme in _AWS_SCHEMES:
        return _aws(parts, parameters)
    return []


def secret_findings(setting: str, value: str) -> list[Finding]:
    """What is unsafe about the value of a setting that is a secret; an empty one is the business of others."""
    if not value:
        return []
    try:
        reference = SecretReference.parse(value)
    except SecretReferenceInvalid as problem:
        return [Finding("secret.reference", f"{setting}: {problem}", "write the reference as documented")]
    if reference.kind == "plain":
        return [
            Finding(
                "secret.plain",
                f"{setting} holds a secret as it is, where the environment and files of settings show it",
                "refer to it: file:///path, aws-sm://id#key or vault://mount/path#field",
            )
        ]
    return _endpoint(reference.endpoint, setting)


def is_inside(where: str, directory: Path) -> bool:
    """Whether a path, or `file:` and a path, leads to a directory or into it, whatever links and `..` say.

    What is another URL does not. What can't be a path does: nobody can say where it leads.
    """
    paths = {where, where.removeprefix("file:"), where.removeprefix("file://")}
    if not where or ("://" in where and len(paths) == 1):
        return False
    try:
        inner = Path(os.path.realpath(directory))
        return any(Path(os.path.realpath(path)).is_relative_to(inner) for path in paths)
    except (OSError, ValueError):
        return True


def place_findings(setting: str, value: str, data_dir: Path) -> list[Finding]:
    """What is unsafe about where a secret of a setting is: a path, or a reference to a file."""
    if not is_inside(value, data_dir):
        return []
    return [
        Finding(
            "secret.data_dir",
            f"{setting} is a file in data_dir, beside what it protects, and in its backups",
            "put it on another volume, such as /run/secrets",
        )
    ]


def aws_findings(environ: Mapping[str, str]) -> list[Finding]:
    """What is unsafe about how AWS and TLS are used from this environment."""
    found = []
    if environ.get("AWS_ACCESS_KEY_ID") and not environ.get("AWS_SESSION_TOKEN"):
        found.append(
            Finding(
                "aws.static_keys",
                "AWS_ACCESS_KEY_ID is a static access key: it has no session token and does not end",
                "give the task a role and unset AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            )
        )
    for name in sorted(environ):
        if name.startswith("AWS_ENDPOINT_URL") and environ[name].lower().startswith("http:"):
            found.append(Finding("aws.endpoint", f"{name} is not encrypted", "use https, or unset it"))
    if environ.get("SSLKEYLOGFILE"):
        found.append(
            Finding("tls.key_log", "SSLKEYLOGFILE writes the keys of TLS connections to a file", "unset SSLKEYLOGFILE")
        )
    return found


def vault_findings(address: str) -> list[Finding]:
    """What is unsafe about the address of Vault."""
    if not address or address.lower().startswith("https://"):
        return []
    return [Finding("vault.address", "vault_address is not encrypted", "use https, and name its authority in vault_ca")]


def master_key_findings(setting: str, *, secure_default: bool = False) -> list[Finding]:
    """What is unsafe about the setting of a master key; `secure_default` when an empty one is fine."""
    if not setting and not secure_default:
        return [
            Finding(
                "master_key.default",
                "the master key lies beside the data that it protects, in data_dir",
                "set master_key to aws-kms://…, vault-transit://… or a file of another volume",
            )
        ]
    return connection_findings(setting) if setting.startswith("aws-kms://") else []


def _postgres(parts: SplitResult, parameters: Mapping[str, str]) -> list[Finding]:
    found = []
    hosts = [each for each in (parts.netloc.rpartition("@")[2] or parameters.get("host", "")).split(",") if each]
    mode = parameters.get("sslmode", "")
    # A socket does not leave the machine.
    if not hosts or not all(unquote(host).startswith("/") for host in hosts):
        if mode != "verify-full":
            found.append(
                Finding(
                    "postgres.sslmode",
                    f"sslmode is {mode or 'not given'}: who sits in between can pose as the database",
                    "sslmode=verify-full",
                )
            )
        if not parameters.get("sslrootcert"):
            found.append(
                Finding(
                    "postgres.sslrootcert",
                    "no authority is named for the certificate of the database",
                    "sslrootcert=/path/to/the/authority.pem (of RDS: global-bundle.pem)",
                )
            )
        if parameters.get("ssl_min_protocol_version") in ("TLSv1", "TLSv1.1"):
            found.append(
                Finding("postgres.tls", "ssl_min_protocol_version allows TLS below 1.2", "take it out of the URL")
            )
    written = unquote(parts.password or "") if "," not in parts.netloc else unquote(_password(parts.netloc))
    password = written or parameters.get("password", "")
    if password and "://" not in password:
        found.append(
            Finding(
                "postgres.password",
                "the URL holds a password as it is",
                "refer to it: password=file:///path, or auth=aws-iam&region=… on RDS",
            )
        )
    for value in parameters.values():
        found += _static_key(value)
    return found


def _redis(parts: SplitResult) -> list[Finding]:
    found = []
    if parts.scheme == "redis" and not _is_loopback(parts.hostname):
        found.append(Finding("redis.tls", "the connection to Redis is not encrypted", "rediss://"))
    if parts.password and "://" not in unquote(parts.password):
        found.append(Finding("redis.password", "the URL holds a password as it is", "refer to the URL as a secret"))
    return found


def _aws(parts: SplitResult, parameters: Mapping[str, str]) -> list[Finding]:
    found = _endpoint(parameters.get("endpoint", ""), parts.scheme)
    for value in (parts.username or "", parts.password or "", *parameters.values()):
        found += _static_key(value)
    return found


def _endpoint(endpoint: str, what: str) -> list[Finding]:
    if endpoint.lower().startswith("http:"):
        return [Finding("aws.endpoint", f"the endpoint of {what} is not encrypted", "leave endpoint out, or use https")]
    return []


def _static_key(value: str) -> list[Finding]:
    if len(value) == 20 and value.startswith("AKIA") and value.isalnum():
        return [Finding("aws.static_keys", "a URL holds a static access key of AWS", "give the task a role")]
    return []


def _password(netloc: str) -> str:
    return netloc.rpartition("@")[0].partition(":")[2]


def _split(url: str) -> tuple[str, str, str, str, str]:
    scheme, _, rest = url.partition("://")
    rest, _, fragment = rest.partition("#")
    rest, _, query = rest.partition("?")
    netloc, slash, path = rest.partition("/")
    return scheme, netloc, slash + path, query, fragment


def _is_loopback(host: str | None) -> bool:
    if host in (None, "localhost"):
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
