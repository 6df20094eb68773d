"""Errors that clients of different stores share."""

from __future__ import annotations

from kiseki.kernel.errors import Unavailable

__all__ = ["NotMigrated"]


class NotMigrated(Unavailable):
    """The store lacks tables or has older ones: `kiseki migrate` makes and renews them."""

    code = "NOT_MIGRATED"
