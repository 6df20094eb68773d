"""`environment_of`: how PostgreSQL's own programs are told where to connect, without a word of it in their arguments.

Used by `programs`. What is in a URL for kiseki alone (`schema`, `auth`) is not in an address's dsn any more.
"""

from __future__ import annotations

import os
import urllib.parse
from typing import Final

from kiseki.clients.postgres import PostgresAddress
from kiseki.clients.postgres_errors import PasswordUnavailable
from kiseki.kernel.errors import KisekiError
from kiseki.operations.errors import OperationFailed

__all__ = ["environment_of", "user_of"]

APPLICATION: Final = "kiseki backup"

_NAMES: Final = {
    "host": "PGHOST",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "dbname": "PGDATABASE",
    "database": "PGDATABASE",
    "passfile": "PGPASSFILE",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "options": "PGOPTIONS",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslcrl": "PGSSLCRL",
    "sslcrldir": "PGSSLCRLDIR",
    "sslsni": "PGSSLSNI",
    "sslnegotiation": "PGSSLNEGOTIATION",
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "channel_binding": "PGCHANNELBINDING",
    "require_auth": "PGREQUIREAUTH",
    "requirepeer": "PGREQUIREPEER",
    "krbsrvname": "PGKRBSRVNAME",
    "gsslib": "PGGSSLIB",
    "gssencmode": "PGGSSENCMODE",
}
"""Parameters of libpq, and the variables that say the same; anything else in a URL is for a session of asyncpg."""

_NOT_OURS: Final = ("PGSERVICE", "PGSERVICEFILE", "PGHOSTADDR", "PGOPTIONS", "PGPASSWORD")
"""Of this process: they would lead a program elsewhere than the URL."""


async def environment_of(address: PostgresAddress | None, *, renewed: bool = False) -> dict[str, str]:
    """The environment of a program that connects to an address, or to nothing; messages are in English.

    `renewed`: the server refused the last password. Raises OperationFailed, PasswordUnavailable.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_OURS}
    environment |= {"LC_ALL": "C", "PGAPPNAME": APPLICATION, "PGCONNECT_TIMEOUT": "10"}
    if address is None:
        return environment
    environment |= {_NAMES[name]: value for name, value in _parameters(address).items() if name in _NAMES}
    if address.passwords is not None:
        try:
            password = address.passwords.renewed() if renewed else address.passwords.password()
            environment["PGPASSWORD"] = await password
        except KisekiError as problem:
            raise PasswordUnavailable(str(problem)) from problem
    return environment


def user_of(address: PostgresAddress) -> str:
    """The role of an address; empty when its URL names none."""
    return _parameters(address).get("user", "")


def _parameters(address: PostgresAddress) -> dict[str, str]:
    parts = urllib.parse.urlsplit(address.dsn)
    parameters = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
    if "sslpassword" in parameters:
        raise OperationFailed(
            f"the URL of {address.label} has sslpassword, which PostgreSQL's own programs can't be given in private; "
            "use a client key without one"
        )
    who, _, hosts = parts.netloc.rpartition("@")
    user, colon, password = who.partition(":")
    given = {"user": urllib.parse.unquote(user)} if user else {}
    if colon:
        given["password"] = urllib.parse.unquote(password)
    if hosts:
        split = [_host_and_port(host) for host in hosts.split(",")]
        given["host"] = ",".join(host for host, _ in split)
        ports = [port or parameters.get("port", "5432") for _, port in split]
        given["port"] = ",".join(ports)
    if database := urllib.parse.unquote(parts.path.removeprefix("/")):
        given["dbname"] = database
    return {**parameters, **given}


def _host_and_port(host: str) -> tuple[str, str]:
    if host.startswith("["):
        name, _, rest = host[1:].partition("]")
        return name, rest.removeprefix(":")
    name, _, port = host.partition(":")
    return urllib.parse.unquote(name), port
