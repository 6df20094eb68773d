"""The errors of operations: each one line for an operator, with what to do. Used by every module of this room."""

from __future__ import annotations

from kiseki.kernel.errors import KisekiError, Unavailable

__all__ = [
    "BackupDamaged",
    "BackupMissing",
    "BackupRefused",
    "ClockWrong",
    "NoRoom",
    "OperationFailed",
    "OperatorBusy",
    "PlaceUnavailable",
    "RestoreHalfDone",
    "RestoreRefused",
    "ToolMissing",
]


class OperationFailed(KisekiError):
    """Something that was to be done was not done. The live system is as it was."""

    code = "OPERATION_FAILED"


class PlaceUnavailable(Unavailable):
    """The place of backups can't be used now: it is not there, or this account may not use it."""

    code = "PLACE_UNAVAILABLE"


class NoRoom(OperationFailed):
    """A disk is full. What was begun was removed again."""

    code = "NO_ROOM"


class OperatorBusy(OperationFailed):
    """Somebody else does the same at this moment."""

    code = "OPERATOR_BUSY"


class BackupRefused(OperationFailed):
    """A backup would not be safe as it is set up."""

    code = "BACKUP_REFUSED"


class BackupMissing(OperationFailed):
    """There is no backup of that name, or none at all."""

    code = "BACKUP_MISSING"


class BackupDamaged(OperationFailed):
    """A backup is not what was written: truncated, altered, or a part of it is not there."""

    code = "BACKUP_DAMAGED"


class RestoreRefused(OperationFailed):
    """A restore would lose what is there, or somebody uses the store. Nothing was changed."""

    code = "RESTORE_REFUSED"


class RestoreHalfDone(OperationFailed):
    """A restore failed after its first switch. Nothing starts on these stores before the same was run again."""

    code = "RESTORE_HALF_DONE"


class ClockWrong(OperationFailed):
    """The clock of this machine contradicts what was written before, so ages can't be told."""

    code = "CLOCK_WRONG"


class ToolMissing(OperationFailed):
    """A program that is needed, such as pg_dump, is not here or is too old."""

    code = "TOOL_MISSING"
