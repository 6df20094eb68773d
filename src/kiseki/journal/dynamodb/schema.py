"""The tables of the DynamoDB journal. Used by the journal, by `kiseki migrate`, and by infrastructure checks."""

from __future__ import annotations

from typing import Final

from kiseki.clients.dynamodb_tables import IndexSpec, Key, TableSpec
from kiseki.journal.dynamodb.held import EXPIRES_AT, KEY
from kiseki.journal.dynamodb.items import BY_SLICE, INDEX_KEY

__all__ = ["TABLES"]

TABLES: Final = (
    TableSpec(
        name="journal",
        hash_key=Key("persistence-id"),
        range_key=Key("sequence-nr", "N"),
        indexes=(IndexSpec(name=BY_SLICE, hash_key=Key("slice", "N"), range_key=Key(INDEX_KEY)),),
        stream="NEW_IMAGE",
    ),
    TableSpec(name="claims", hash_key=Key(KEY), time_to_live=EXPIRES_AT),
    TableSpec(name="snapshots", hash_key=Key("stream"), range_key=Key("version")),
)
"""Commits, with a stream of what is added and an index by time of writing; claims and idempotency records;
snapshots."""
