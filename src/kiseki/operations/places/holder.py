"""Who holds a lock, in words for the operator who meets it. Used by the locks of places."""

from __future__ import annotations

import getpass
import os
import platform
from datetime import datetime

__all__ = ["holder_line", "shown_holder"]


def holder_line(since: datetime) -> str:
    """This process, for others to read; `since` in UTC."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user that has no name
        user = f"user {os.geteuid()}"
    return f"{user}, process {os.getpid()} on {platform.node()}, since {since:%Y-%m-%d %H:%M:%S} UTC"


def shown_holder(data: bytes) -> str:
    """What a lock says of its holder, on one line; it comes from outside and may be anything."""
    text = data[:300].decode("utf-8", "replace")
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return line or "somebody who has not said who"
