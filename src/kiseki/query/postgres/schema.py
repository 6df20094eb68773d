"""The tables of the catalog of PostgreSQL read models, and the names of the schemas of builds. Pure.

<schema>                                     the catalog
<schema>_<projection>_v<version>_<n>         one build: the projection's tables, guards, parked streams, position
"""

from __future__ import annotations

import hashlib
from typing import Final

from kiseki.clients.postgres_migrations import Migration
from kiseki.projection.port import BuildName

__all__ = ["COMPONENT", "DEFAULT_SCHEMA", "MIGRATIONS", "request_channel", "schema_names"]

COMPONENT: Final = "read models"
DEFAULT_SCHEMA: Final = "kiseki_read_models"
_LONGEST: Final = 63
"""Bytes of a name (PostgreSQL, 4.1.1); it would cut off the rest without an error."""

MIGRATIONS: Final = (
    Migration(
        1,
        (
            """
            CREATE TABLE read_model_builds (
                projection text COLLATE "C" NOT NULL,
                version bigint NOT NULL,
                generation bigint NOT NULL,
                schema_name text COLLATE "C" NOT NULL UNIQUE,
                state text NOT NULL CHECK (state IN ('building', 'live', 'retired')),
                created_at timestamptz NOT NULL,
                promoted_at timestamptz,
                retired_at timestamptz,
                problem text,
                PRIMARY KEY (projection, version, generation)
            )
            """,
            "CREATE UNIQUE INDEX read_model_one_live_build ON read_model_builds (projection) WHERE state = 'live'",
            """
            CREATE TABLE read_model_generations (
                projection text COLLATE "C" NOT NULL,
                version bigint NOT NULL,
                last bigint NOT NULL,
                PRIMARY KEY (projection, version)
            )
            """,
            """
            CREATE TABLE read_model_owners (
                projection text COLLATE "C" NOT NULL,
                version bigint NOT NULL,
                number bigint NOT NULL,
                PRIMARY KEY (projection, version)
            )
            """,
            """
            CREATE TABLE read_model_requests (
                id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                projection text COLLATE "C" NOT NULL,
                version bigint NOT NULL,
                kind text NOT NULL,
                stream text,
                requested_at timestamptz NOT NULL,
                finished_at timestamptz,
                outcome text
            )
            """,
            """
            CREATE INDEX read_model_open_requests ON read_model_requests (projection, version, id)
            WHERE finished_at IS NULL
            """,
        ),
    ),
)


def schema_names(catalog: str, name: BuildName) -> tuple[str, str]:
    """The name of a build's schema, and the one to take when it is too long or taken by somebody else's.

    Of one catalog no two builds have the same: the numbers at the end tell where the projection's name ends. A catalog
    whose own name goes on as one of these does could meet them, so the second one has a hash of both.
    """
    plain = f"{catalog}_{name.projection}_v{name.version}_{name.generation}"
    digest = hashlib.sha256(f"{catalog}\0{name}".encode()).hexdigest()[:16]
    hashed = f"{plain[: _LONGEST - len(digest) - 1]}_{digest}"
    return (plain if len(plain) <= _LONGEST else hashed), hashed


def request_channel(catalog: str) -> str:
    """The channel on which requests are announced (NOTIFY)."""
    return f"{catalog}_requests"
