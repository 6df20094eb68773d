"""`NoAudit`: an Auditor that records nothing, for tests and tools that serve nobody."""

from __future__ import annotations

from kiseki.kernel.ports import AuditEvent

__all__ = ["NoAudit"]


class NoAudit:
    """Implements Auditor."""

    def note(self, event: AuditEvent) -> None:
        """As Auditor."""

    async def record(self, event: AuditEvent) -> None:
        """As Auditor."""
