"""The system's clock and ids: the kernel's ports as a running process fills them."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from ulid import ULID

__all__ = ["SystemClock", "UlidSource"]


class SystemClock:
    """Time of this machine."""

    def now(self) -> datetime:
        """The current time, UTC, in microseconds."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()


class UlidSource:
    """ULIDs: 48 bits of time and 80 random bits. Their order carries no meaning."""

    def new_id(self) -> str:
        """A new ULID, 26 characters."""
        return str(ULID())
