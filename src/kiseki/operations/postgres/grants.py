"""Who owns a schema and what is in it, and who may do what there: kept with a backup and given again by a restore.

Used by the PostgreSQL drivers. A dump leaves rights out, because the roles of another server have other names; a store
that the service's role can't use would be no store.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from kiseki.clients.postgres import PostgresConnection
from kiseki.operations.errors import BackupDamaged

__all__ = ["GRANTS", "Grant", "Grants", "apply_grants", "load_grants", "read_grants", "save_grants"]

GRANTS: Final = "grants.json"
"""The file of a backup that says who might do what."""

Kind = Literal["SCHEMA", "TABLE", "SEQUENCE", "DEFAULT TABLES", "DEFAULT SEQUENCES"]
Privilege = Literal[
    "SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER", "MAINTAIN", "USAGE", "CREATE"
]


class Grant(msgspec.Struct, frozen=True):
    """One right on one thing of a schema."""

    kind: Kind
    name: str
    """Of the table or sequence; for a default, of the role that makes such things."""
    grantee: str
    """Empty for PUBLIC."""
    privilege: Privilege
    grantable: bool


class Grants(msgspec.Struct, frozen=True):
    """Everything of one schema."""

    owner: str
    grants: tuple[Grant, ...]


_OWNER: Final = "SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = $1"
# The owner's own rights come with owning.
_GRANTS: Final = """
    WITH place AS (SELECT oid, nspowner, nspacl FROM pg_namespace WHERE nspname = $1),
    kept AS (
        SELECT 'SCHEMA' AS kind, '' AS name, nspowner AS owner, nspacl AS acl FROM place
        UNION ALL
        SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, relname, relowner, relacl
        FROM pg_class JOIN place ON relnamespace = place.oid WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
        UNION ALL
        SELECT CASE defaclobjtype WHEN 'S' THEN 'DEFAULT SEQUENCES' ELSE 'DEFAULT TABLES' END,
               pg_get_userbyid(defaclrole), defaclrole, defaclacl
        FROM pg_default_acl JOIN place ON defaclnamespace = place.oid WHERE defaclobjtype IN ('r', 'S')
    )
    SELECT kind, name, CASE grantee WHEN 0 THEN '' ELSE pg_get_userbyid(grantee) END AS grantee,
           privilege_type AS privilege, is_grantable AS grantable
    FROM kept, aclexplode(acl) WHERE grantee <> owner
    ORDER BY kind, name, grantee, privilege
"""
_UNKNOWN: Final = """
    SELECT role FROM unnest($1::text[]) AS role WHERE role <> '' AND to_regrole(quote_ident(role)) IS NULL ORDER BY role
"""
_MAY_GIVE: Final = "SELECT pg_has_role(current_user, to_regrole(quote_ident($1)), 'MEMBER')"
_SET: Final = "SELECT set_config('kiseki.place', $1, true), set_config('kiseki.grants', $2, true)"
_SET_OWNER: Final = "SELECT set_config('kiseki.owner', $1, true)"
# The server quotes every name; what is not there any more is left out.
_GIVE: Final = """
    DO $give$
    DECLARE
        place CONSTANT text := current_setting('kiseki.place');
        given record;
    BEGIN
        FOR given IN
            SELECT * FROM json_to_recordset(current_setting('kiseki.grants')::json)
                AS g (kind text, name text, grantee text, privilege text, grantable boolean)
        LOOP
            CONTINUE WHEN given.kind IN ('TABLE', 'SEQUENCE')
                AND to_regclass(format('%I.%I', place, given.name)) IS NULL;
            EXECUTE CASE
                WHEN given.kind LIKE 'DEFAULT %'
                THEN format('ALTER DEFAULT PRIVILEGES FOR ROLE %I IN SCHEMA %I ', given.name, place) ELSE '' END
                || format('GRANT %s ON %s TO %s%s', given.privilege,
                    CASE WHEN given.kind = 'SCHEMA' THEN format('SCHEMA %I', place)
                         WHEN given.kind LIKE 'DEFAULT %' THEN replace(given.kind, 'DEFAULT ', '')
                         ELSE format('%s %I.%I', given.kind, place, given.name) END,
                    CASE WHEN given.grantee = '' THEN 'PUBLIC' ELSE quote_ident(given.grantee) END,
                    CASE WHEN given.grantable THEN ' WITH GRANT OPTION' ELSE '' END);
        END LOOP;
    END $give$
"""
_GIVE_AWAY: Final = """
    DO $give$
    DECLARE
        place CONSTANT text := current_setting('kiseki.place');
        owner CONSTANT text := current_setting('kiseki.owner');
        thing record;
    BEGIN
        FOR thing IN
            SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident(place))
                AND relkind IN ('r', 'p', 'v', 'm', 'f')
        LOOP
            EXECUTE format('ALTER TABLE %I.%I OWNER TO %I', place, thing.relname, owner);
        END LOOP;
        EXECUTE format('ALTER SCHEMA %I OWNER TO %I', place, owner);
    END $give$
"""


async def read_grants(connection: PostgresConnection, schema: str) -> Grants | None:
    """The rights in a schema; None when there is no such schema. Raises what asyncpg raises."""
    owner = await connection.fetchval(_OWNER, schema)
    if owner is None:
        return None
    rows = await connection.fetch(_GRANTS, schema)
    return Grants(owner, tuple(msgspec.convert([dict(row) for row in rows], list[Grant])))


async def apply_grants(connection: PostgresConnection, schema: str, grants: Grants) -> list[str]:
    """Gives them in a schema, inside a transaction; a line for each role that is not here, or may not be made owner."""
    names = {name for grant in grants.grants for name in (grant.grantee, grant.name if "DEFAULT" in grant.kind else "")}
    unknown = {row["role"] for row in await connection.fetch(_UNKNOWN, sorted({*names, grants.owner}))}
    left = [
        f"the role {role} is not on this server: make it, and grant it its rights on the schema {schema}"
        for role in sorted(unknown)
    ]
    given = [
        grant
        for grant in grants.grants
        if grant.grantee not in unknown and not ("DEFAULT" in grant.kind and grant.name in unknown)
    ]
    await connection.execute(_SET, schema, msgspec.json.encode(given).decode())
    await connection.execute(_GIVE)
    if grants.owner not in unknown:
        if await connection.fetchval(_MAY_GIVE, grants.owner):
            await connection.execute(_SET_OWNER, grants.owner)
            await connection.execute(_GIVE_AWAY)
        else:
            left.append(
                f"the schema {schema} belonged to {grants.owner}: as a superuser make that role its owner again"
            )
    return left


def save_grants(folder: Path, grants: Sequence[tuple[str, Grants]]) -> None:
    """Writes the rights of schemas beside a dump. Raises OSError."""
    (folder / GRANTS).write_bytes(msgspec.json.format(msgspec.json.encode(dict(grants)), indent=2) + b"\n")


def load_grants(folder: Path) -> dict[str, Grants]:
    """By schema. Raises BackupDamaged."""
    try:
        return msgspec.json.decode((folder / GRANTS).read_bytes(), type=dict[str, Grants])
    except (FileNotFoundError, msgspec.DecodeError) as problem:
        raise BackupDamaged(f"{GRANTS} of the backup can't be read; use another backup") from problem
