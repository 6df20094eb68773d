"""Makes the secrets of compose.yaml, where they are not there yet: nobody's are the same, and none is in a file here.

    make_secrets.py FOLDER

Files are for their owner and its group alone. What is there stays as it is, so it may run again at every start.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

MASTER_KEY_BYTES = 32


def main(folder: Path) -> None:
    """Each secret in a file of its name."""
    make(folder / "master.key", secrets.token_bytes(MASTER_KEY_BYTES), mode=0o600)
    for name in ("token", "audit", "postgres"):
        make(folder / name, secrets.token_urlsafe(48).encode(), mode=0o640)


def make(path: Path, content: bytes, *, mode: int) -> None:
    """A file that is there whole or not at all, also when the machine stops meanwhile."""
    if path.exists():
        return
    begun = path.with_name(f"{path.name}.begun")
    with begun.open("wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    begun.rename(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
