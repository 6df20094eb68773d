"""Which tables belong to what is restored as a whole. Used by the drivers of DynamoDB."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kiseki.clients.dynamodb_generations import StorePart
from kiseki.clients.dynamodb_tables import TableSpec
from kiseki.journal.dynamodb.schema import TABLES
from kiseki.security.dynamodb_key_store import KEYS_TABLE
from kiseki.security.identity.dynamodb_revocations import REVOCATIONS_TABLE

__all__ = ["PARTS", "SPECS"]

SPECS: Final[Mapping[StorePart, tuple[TableSpec, ...]]] = {
    "journal": TABLES,
    "keys": (KEYS_TABLE, REVOCATIONS_TABLE),
}
PARTS: Final[Mapping[StorePart, tuple[str, ...]]] = {
    part: tuple(spec.name for spec in specs) for part, specs in SPECS.items()
}
"""The names of tables without prefix."""
