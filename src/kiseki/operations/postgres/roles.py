"""`prepare_server`: makes the databases and the roles that the settings name, on a PostgreSQL that has neither.

Used by `kiseki database prepare`, once, with the server's own administrator; processes never have such rights. Roles
that sign in with IAM are made here. A role with a password is not: whoever makes the password makes the role.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import asyncpg

from kiseki.clients.postgres import PasswordSource, PostgresAddress, PostgresConnection, connect, quoted
from kiseki.clients.postgres_errors import is_unavailable, reason
from kiseki.clients.urls import StoreUrlInvalid
from kiseki.operations.errors import OperationFailed

__all__ = ["WantedDatabase", "prepare_server", "wanted_databases"]

_IAM: Final = "rds_iam"
_ROLE: Final = "SELECT 1 FROM pg_roles WHERE rolname = $1"
_MEMBER: Final = "SELECT pg_has_role($1::name, $2::name, 'MEMBER')"
_DATABASE: Final = "SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = $1"
_RIGHTS: Final = (
    "SELECT bool_and(has_database_privilege($1, $2, wanted)) FROM unnest(ARRAY['CONNECT', 'CREATE']) AS wanted"
)
_APPLICATION: Final = "kiseki database prepare"


class WantedDatabase(NamedTuple):
    """A database that a setting names, and who signs in to it."""

    setting: str
    host: str
    database: str
    role: str
    iam: bool


def wanted_databases(urls: Mapping[str, str], passwords: Callable[[str], PasswordSource]) -> Sequence[WantedDatabase]:
    """Those of PostgreSQL among the URLs, by setting, each pair of database and role once. No password is asked for.

    Raises StoreUrlInvalid for a URL that can't be read, or that names no user or no plain SQL name.
    """
    found: dict[tuple[str, str, str], WantedDatabase] = {}
    for setting, url in urls.items():
        if not url.startswith(("postgresql://", "postgres://")):
            continue
        PostgresAddress.parse(url, schema="public", passwords=passwords)
        parts = urllib.parse.urlsplit(url)
        parameters = dict(urllib.parse.parse_qsl(parts.query))
        role = urllib.parse.unquote(parts.username or "") or parameters.get("user", "")
        database = urllib.parse.unquote(parts.path.removeprefix("/")) or parameters.get("dbname", "")
        if not role:
            raise StoreUrlInvalid(f"{setting} names no user; write postgresql://user@host/database")
        for name in (role, database):
            try:
                quoted(name)
            except ValueError as problem:
                raise StoreUrlInvalid(f"{setting}: {problem}; use letters, digits and _") from problem
        host = parts.hostname or parameters.get("host", "")
        wanted = WantedDatabase(setting, host, database, role, parameters.get("auth") == "aws-iam")
        found.setdefault((host, database, role), wanted)
    return list(found.values())


async def prepare_server(admin: PostgresAddress, host: str, wanted: Sequence[WantedDatabase]) -> Sequence[str]:
    """Makes what is missing of `wanted` on the server of `admin`, whose name is `host`; a line for each thing done or
    left. What is there already stays as it is, but gets the rights that are missing.

    Raises OperationFailed when the server can't be used, lacks IAM, or has a database in an encoding that is not UTF8.
    """
    here = [each for each in wanted if each.host == host]
    lines = [
        f"{each.setting} is on another server, {each.host}: run this for that one too"
        for each in wanted
        if each.host != host
    ]
    try:
        connection = await connect(admin, application=_APPLICATION, statement_timeout=60.0)
    except Exception as problem:
        raise _failed(admin, problem) from problem
    try:
        for each in here:
            lines += await _role(connection, each)
        for each in here:
            lines += await _database(connection, each)
    except asyncpg.InsufficientPrivilegeError as problem:
        raise OperationFailed(
            f"{admin.label}: this user may not make roles and databases; name the administrator"
        ) from problem
    except OperationFailed:
        raise
    except Exception as problem:
        raise _failed(admin, problem) from problem
    finally:
        await connection.close()
    return lines


async def _role(connection: PostgresConnection, wanted: WantedDatabase) -> Sequence[str]:
    lines = []
    if not await connection.fetchval(_ROLE, wanted.role):
        if not wanted.iam:
            raise OperationFailed(
                f"{wanted.setting}: the role {wanted.role} signs in with a password and is not there; make it with "
                "CREATE ROLE … LOGIN and \\password, and run this again"
            )
        await connection.execute(f"CREATE ROLE {quoted(wanted.role)} LOGIN")
        lines.append(f"role {wanted.role}: made")
    if wanted.iam:
        if not await connection.fetchval(_ROLE, _IAM):
            raise OperationFailed(
                f"{wanted.setting} has auth=aws-iam, but the server has no role {_IAM}: it is not on RDS, or IAM "
                "authentication is off"
            )
        if not await connection.fetchval(_MEMBER, wanted.role, _IAM):
            await connection.execute(f"GRANT {quoted(_IAM)} TO {quoted(wanted.role)}")
            lines.append(f"role {wanted.role}: signs in with IAM")
    return lines


async def _database(connection: PostgresConnection, wanted: WantedDatabase) -> Sequence[str]:
    lines = []
    name = quoted(wanted.database)
    encoding = await connection.fetchval(_DATABASE, wanted.database)
    if encoding is None:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")
        await connection.execute(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC")
        lines.append(f"database {wanted.database}: made")
    elif encoding != "UTF8":
        raise OperationFailed(f"{wanted.setting}: the database {wanted.database} is encoded in {encoding}, not in UTF8")
    if not await connection.fetchval(_RIGHTS, wanted.role, wanted.database):
        await connection.execute(f"GRANT CONNECT, CREATE ON DATABASE {name} TO {quoted(wanted.role)}")
        lines.append(f"database {wanted.database}: {wanted.role} may connect and make schemas")
    return lines


def _failed(admin: PostgresAddress, problem: Exception) -> OperationFailed:
    """Raises what says nothing of the server."""
    if is_unavailable(problem) or isinstance(problem, asyncpg.PostgresError):
        return OperationFailed(f"{admin.label} can't be prepared: {reason(problem)}")
    raise problem
