"""`AwsEmulator`: an emulator of AWS (DynamoDB, Streams, Lambda, …) on loopback, from a virtual environment of its own.

    with AwsEmulator() as aws:
        aws.endpoint            # http://127.0.0.1:<port>; any credentials do

`make .venv-emulators/.ready` installs it. `KISEKI_TEST_DYNAMODB_ENDPOINT` names another endpoint to use instead.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.servers.processes import clean_environment, die_with_parent, free_port

__all__ = ["REGION", "AwsEmulator", "NoEmulator"]

REGION: Final = "eu-west-1"
_START_SECONDS: Final = 60.0
_PYTHON: Final = Path(__file__).parents[2] / ".venv-emulators" / "bin" / "python"


class NoEmulator(RuntimeError):
    """There is no emulator to run here, or it does not start; the message says why."""


class AwsEmulator:
    """One emulator, with state of its own that is gone at the end."""

    def __init__(self) -> None:
        if not _PYTHON.exists():
            raise NoEmulator("the emulator is not installed; `make test` does it")
        self.directory = Path(tempfile.mkdtemp(prefix="kaws-"))
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.launch()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def launch(self) -> None:
        """Starts it. Raises NoEmulator."""
        environment = clean_environment(
            {
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_DEFAULT_REGION": REGION,
                "AWS_EC2_METADATA_DISABLED": "true",
                "TMPDIR": str(self.directory),
                "BIND_HOST": "127.0.0.1",
                "MINISTACK_HOST": "127.0.0.1",
                "GATEWAY_PORT": str(self.port),
                "IOT_MTLS_ENABLED": "0",
                "STATE_DIR": str(self.directory),
                "S3_DATA_DIR": str(self.directory / "s3"),
                "LOG_LEVEL": "WARNING",
            }
        )
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [_PYTHON, "-m", "ministack"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509  # it allocates nothing
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise NoEmulator(f"the emulator did not start:\n{self.log_tail()}")
            try:
                urllib.request.urlopen(f"{self.endpoint}/_ministack/health", timeout=1).read()
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise NoEmulator(f"the emulator was not ready after {_START_SECONDS:g} s:\n{self.log_tail()}")

    def halt(self) -> None:
        """Kills it; what it held is lost unless it keeps state, so this is for tests of an endpoint that is gone."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def freeze(self) -> None:
        """Stops it where it is: connections stay open and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        # A stopped process is stopped a moment later.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def thaw(self) -> None:
        """Lets it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ends it and removes what it kept."""
        self.halt()
        shutil.rmtree(self.directory, ignore_errors=True)

    def log_tail(self) -> str:
        """The end of its log."""
        try:
            return (self.directory / "log").read_text(errors="replace")[-3000:]
        except OSError:
            return ""
