"""What names in a place look like, the same for folders and S3. Used by every kind of place."""

from __future__ import annotations

import re
from typing import Final

from kiseki.operations.errors import OperationFailed

__all__ = ["checked_name", "checked_prefix", "is_hidden"]

_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,=+@:-]{0,199}")
_LONGEST: Final = 800
"""Characters. With the prefix S3 allows 1024 bytes
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html)."""


def checked_name(name: str) -> str:
    """The name itself. Raises OperationFailed for one that would lead elsewhere, or that is hidden."""
    if len(name) > _LONGEST or not all(_PART.fullmatch(part) for part in name.split("/")):
        raise OperationFailed(
            f"{name[:100]!r} is no name in a place of backups: its parts are of a-z A-Z 0-9 _ . , = + @ : - and do not "
            f"begin with a dot; look at the names with `kiseki backup list`"
        )
    return name


def checked_prefix(prefix: str) -> tuple[str, str]:
    """The folder of a prefix (empty for the place itself), and the prefix. Raises OperationFailed as `checked_name`."""
    folder, slash, begin = prefix.rpartition("/")
    if slash:
        checked_name(folder)
    if begin:
        checked_name(begin)
    return folder, prefix


def is_hidden(name: str) -> bool:
    """Whether a name is not for users of a place: locks, and what is being made."""
    return any(part.startswith(".") for part in name.split("/"))
