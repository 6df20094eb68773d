"""A function on embedded stores, for a process of its own: everything of the real one but the kind of its stores.

`KISEKI_TEST_DIRECTORY` names the data directory. `KISEKI_TEST_DO` has it do what a function may meet: `die` after the
first page was written, `wait` for ever for the database, or be `stuck` so that nothing of it runs any more.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kiseki.journal.dynamodb.items import commit_of
from kiseki.projection.port import Batch
from kiseki.query.sqlite.builds import SqliteStore
from kiseki.service.lambda_handler import LambdaHandler
from kiseki.service.lambda_parts import LambdaParts, ParkedCounter, Source, Warm, open_stores
from kiseki.service.settings import Settings
from kiseki.users import app

_DO = os.environ.get("KISEKI_TEST_DO", "")


def prepare(environ: Mapping[str, str], directory: Path) -> LambdaParts:
    """The parts of the users application on a data directory."""
    settings = Settings(data_dir=Path(environ["KISEKI_TEST_DIRECTORY"]))
    telemetry = ParkedCounter()

    async def opened() -> Warm:
        return await open_stores(app, settings, telemetry)

    return LambdaParts(settings, Source("shop-journal", "eu-west-1", commit_of), telemetry, opened)


if _DO:
    _write = SqliteStore.write

    async def write(store: SqliteStore, batch: Batch) -> None:
        """Writes, sooner or later or never."""
        if _DO == "wait":
            await asyncio.Event().wait()
        if _DO == "stuck":
            os.kill(os.getpid(), signal.SIGSTOP)
        await _write(store, batch)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(SqliteStore, "write", write)  # noqa: B010  # mypy refuses the plain form

handler: Any = LambdaHandler(prepare=prepare)
