"""The virtual environment of the frozen baseline, made once from its hashed lock file."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.errors import BenchmarkError

BENCHMARKS = Path(__file__).resolve().parent
CACHE = BENCHMARKS / ".cache"
BASELINE = BENCHMARKS / "baseline"
LOCK = BASELINE / "requirements.lock"
FROZEN_SUFFIXES = {".py", ".in", ".lock"}


def baseline_digest() -> str:
    """SHA-256 over the baseline's files: results compare only where it is the same."""
    digest = hashlib.sha256()
    for path in sorted(p for p in BASELINE.iterdir() if p.suffix in FROZEN_SUFFIXES):
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def baseline_python() -> Path:
    """The interpreter of the baseline; the first call installs it and needs the package registry."""
    key = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = CACHE / f"baseline-{key}"
    python = folder / "bin" / "python"
    complete = folder / "complete"
    if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)
        print("installing the baseline's packages (once)", file=sys.stderr)
        _run([sys.executable, "-m", "venv", str(folder)], "make a virtual environment")
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        _run(
            [*pip, "--require-hashes", "-r", str(LOCK)],
            "install the baseline's packages (is the package registry within reach?)",
        )
        complete.touch()
    return python


def _run(arguments: list[str], purpose: str) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = (errors or done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise BenchmarkError(f"cannot {purpose}: {reason}")
