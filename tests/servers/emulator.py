"""`AwsEmulator`: an emulator of AWS (DynamoDB, Streams, Lambda, …) on loopback, from a virtual environment of its own.

    with AwsEmulator() as aws:
        aws.endpoint            # http://127.0.0.1:<port>; any credentials do
    with AwsEmulator(auth=True) as aws:
        aws.endpoint            # refuses what the policies of the caller do not allow; the key `test` may do all

`make .venv-emulators/.ready` installs it. `KISEKI_TEST_DYNAMODB_ENDPOINT` names another endpoint to use instead.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from typing import Final

from tests.servers.throwaway import ThrowawayServer

__all__ = ["REGION", "AwsEmulator", "NoEmulator"]

REGION: Final = "eu-west-1"
_PYTHON: Final = Path(__file__).parents[2] / ".venv-emulators" / "bin" / "python"


class NoEmulator(RuntimeError):
    """There is no emulator to run here, or it does not start; the message says why."""


class AwsEmulator(ThrowawayServer):
    """One emulator, with state of its own that is gone at the end."""

    refused = NoEmulator
    called = "the emulator"
    start_seconds = 60.0

    def __init__(self, *, auth: bool = False) -> None:
        """With `auth` signatures and policies count."""
        if not _PYTHON.exists():
            raise NoEmulator("the emulator is not installed; `make test` does it")
        super().__init__(prefix="kaws-")
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._auth = auth

    def launch(self) -> None:
        """Starts it. Raises NoEmulator."""
        self.run(
            [_PYTHON, "-m", "ministack"],
            self._ready,
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
                "AUTH": str(self._auth).lower(),
            },
        )

    def _ready(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.endpoint}/_ministack/health", timeout=1).read()
        except urllib.error.HTTPError:
            return True  # it answers
        except OSError:
            return False
        return True
