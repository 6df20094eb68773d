"""Facts about the machine that a figure means nothing without."""

import os
import platform
import sqlite3
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SYNC_PROBE_SECONDS = 0.25
SYNC_PROBE_BYTES = 4096


@dataclass(frozen=True)
class Machine:
    """Where and with what a run was made; disk syncs are of one small file on the data's disk."""

    cores: int
    processor: str
    system: str
    python: str
    sqlite: str
    disk_syncs_per_second: float
    load_average: float

    @classmethod
    def observe(cls, folder: Path) -> "Machine":
        return cls(
            cores=os.cpu_count() or 1,
            processor=_processor(),
            system=f"{platform.system()} {platform.release()} {platform.machine()}",
            python=f"{platform.python_implementation()} {sys.version.split()[0]}",
            sqlite=sqlite3.sqlite_version,
            disk_syncs_per_second=round(_disk_syncs_per_second(folder)),
            load_average=round(os.getloadavg()[0], 2),
        )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _disk_syncs_per_second(folder: Path) -> float:
    path = folder / "sync-probe"
    syncs = 0
    with path.open("wb", buffering=0) as file:
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < SYNC_PROBE_SECONDS:
            file.write(bytes(SYNC_PROBE_BYTES))
            os.fsync(file.fileno())
            syncs += 1
    path.unlink()
    return syncs / elapsed
