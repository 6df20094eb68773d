"""A process on a data directory's keys, told what to do line by line.

    key_process.py DIRECTORY

`ensure SUBJECT …` answers with a line `SUBJECT SEALED` each and `done`; `look SUBJECT` with `key`, `erased` or
`unknown`; `erase SUBJECT` and `hold` (a read that stays open) with `done`; `release` ends that read.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from pathlib import Path

from kiseki.application.system import SystemClock
from kiseki.kernel.personal import Erased
from kiseki.security.master_key import LocalMasterKey
from kiseki.security.protector import KeyProtector
from kiseki.security.sqlite_key_store import SqliteKeyStore

CONTEXT = b"test"


async def main(directory: Path) -> None:
    store = await SqliteKeyStore.open(directory / "keys.sqlite")
    master = LocalMasterKey.load_or_create(directory / "master.key")
    keys = await KeyProtector.open(store=store, wrapper=master, clock=SystemClock())
    held: sqlite3.Connection | None = None
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        order, *subjects = line.split()
        answers = []
        if order == "ensure":
            found = await asyncio.gather(*(keys.ensure([subject]) for subject in subjects))
            ciphers = {subject: cipher for each in found for subject, cipher in each.items()}
            answers = [f"{subject} {cipher.seal(subject.encode(), CONTEXT)}" for subject, cipher in ciphers.items()]
        elif order == "look":
            cipher = (await keys.ciphers(subjects)).get(subjects[0])
            answers = ["unknown" if cipher is None else "erased" if isinstance(cipher, Erased) else "key"]
        elif order == "erase":
            await keys.erase(subjects[0])
        elif order == "hold":
            held = sqlite3.connect(directory / "keys.sqlite", isolation_level=None)
            held.execute("BEGIN")
            held.execute("SELECT count(*) FROM subject_keys").fetchone()
        elif held is not None:
            held.close()
        print(*answers, "done", sep="\n", flush=True)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
