"""What an operator asks of a restore, and what it says it has done. Used by `restore` and the command line."""

from __future__ import annotations

from datetime import datetime

import msgspec

from kiseki.operations.backup.manifest import Contents, Part

__all__ = ["RestorePlan", "RestoreReport"]


class RestorePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator asked for."""

    parts: frozenset[Part] = frozenset()
    """What to restore; journal and key store, as far as they are lost, when empty. Read models by themselves."""
    identity: str | None = None
    """A backup of the journal, or of the read models; the newest there is, when None."""
    until: datetime | None = None
    """The journal, or the read models, as of a time (UTC)."""
    discard_newer: bool = False
    """What is live and newer may be lost. It is kept aside."""
    put_back_audit: bool = False
    """The audit log too, where there is a backup of it: nobody named what to restore."""
    catch_up: bool = True
    """Builds read models before it is done; otherwise an updater does when it starts."""


class RestoreReport(msgspec.Struct, kw_only=True):
    """What was done."""

    journal_from: str = ""
    journal: Contents | None = None
    journal_kept: str = ""
    lost_commits: int | None = 0
    """Commits that were live and are not restored; None when nobody knows."""
    keys_from: str = ""
    keys_kept: str = ""
    lost_keys: int | None = 0
    people_without_keys: int = 0
    """Whose data in the journal can't be read any more, because their keys are younger than the copy of the keys."""
    read_models_from: str = ""
    builds: int = 0
    """Restored builds of read models."""
    read_models_kept: str = ""
    audit_records: int = 0
    erasures: str = ""
    left: list[str] = []
    """What the operator still has to do, one line each."""
    seconds: float = 0.0
