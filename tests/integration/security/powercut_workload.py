"""The program under test of the power cuts: makes and destroys keys, and marks each promise in the ACK file.

    powercut_workload.py DIRECTORY SUBJECTS

`master ID` after the master key was made, `made SUBJECT SEALED` after a key was made, `erasing SUBJECT` before and
`erased SUBJECT WRAPPED` after it was destroyed.
"""

from __future__ import annotations

import asyncio
import base64
import os
import sys
from pathlib import Path

from kiseki.application.system import SystemClock
from kiseki.security.master_key import LocalMasterKey
from kiseki.security.protector import KeyProtector
from kiseki.security.sqlite_key_store import SqliteKeyStore

CONTEXT = b"power cut"


def mark(marks: int, *words: str) -> None:
    os.write(marks, f"{' '.join(words)}\n".encode())


async def live(store: SqliteKeyStore, keys: KeyProtector, marks: int, subject: str, *, dies: bool) -> None:
    cipher = (await keys.ensure([subject]))[subject]
    mark(marks, "made", subject, cipher.seal(subject.encode(), CONTEXT))
    if dies:
        (key,) = (await store.load([subject]))[subject].keys
        mark(marks, "erasing", subject)
        await keys.erase(subject)
        mark(marks, "erased", subject, base64.b64encode(key.wrapped).decode())


async def main(directory: Path, subjects: int) -> None:
    master = LocalMasterKey.load_or_create(directory / "master.key")
    marks = os.open(directory / "ACK", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    mark(marks, "master", master.key_id)
    store = await SqliteKeyStore.open(directory / "keys.sqlite")
    keys = await KeyProtector.open(store=store, wrapper=master, clock=SystemClock())
    for start in range(0, subjects, 4):
        names = [f"UserAccount-{number}" for number in range(start, start + 4)]
        await asyncio.gather(*(live(store, keys, marks, name, dies=place % 2 == 0) for place, name in enumerate(names)))
    os.close(marks)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
