"""What tests of the Lambda handler share: a journal, real read models, records as DynamoDB Streams has them, faults."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Table, select

from kiseki.journal.dynamodb.items import commit_item, commit_of, document_bytes
from kiseki.journal.port import START, Commit
from kiseki.kernel.codec import EventCodec
from kiseki.projection.port import Batch, BuildName, BuildState, ParkedStream, ProjectionStore
from kiseki.projection.subscription import Subscription
from kiseki.query.sqlite.read_models import SqliteReadModels
from kiseki.service.lambda_handler import LambdaHandler, LambdaHandlerSettings
from kiseki.service.lambda_parts import LambdaParts, ParkedCounter, Source, Warm
from kiseki.service.lambda_updater import PushedUpdater
from kiseki.service.settings import Settings
from tests.unit.projection.parts import Feed, Totals, World

TABLE = "shop-journal"
ARN = f"arn:aws:dynamodb:eu-west-1:123456789012:table/{TABLE}/stream/2026-01-01T00:00:00.000"
FINE: dict[str, Any] = {"batchItemFailures": []}


def record_of(commit: Commit, number: int, *, event_name: str = "INSERT", arn: str = ARN) -> dict[str, Any]:
    """A record as Lambda hands it over; `number` becomes its sequence number in the stream."""
    image = commit_item(commit, document_bytes(commit)).item
    body: dict[str, Any] = {
        "ApproximateCreationDateTime": 1_767_225_600.0,
        "Keys": {name: image[name] for name in ("persistence-id", "sequence-nr")},
        "NewImage": image,
        "SequenceNumber": f"{number:021d}",
        "SizeBytes": 300,
        "StreamViewType": "NEW_IMAGE",
    }
    if event_name == "REMOVE":
        del body["NewImage"]
    return {
        "eventID": f"{number:032x}",
        "eventName": event_name,
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": "eu-west-1",
        "dynamodb": body,
        "eventSourceARN": arn,
    }


def garbled(record: Mapping[str, Any], *, keys: bool = True) -> dict[str, Any]:
    """The record with bytes in its image that are no commit; without `keys` nothing in it says what it was about."""
    copy: dict[str, Any] = json.loads(json.dumps(record))
    body = copy["dynamodb"]
    body["NewImage"]["document"] = {"B": base64.b64encode(b"\x00\xffgarbage").decode()}
    if not keys:
        body["NewImage"] = {"\udcff": 7}
        body["Keys"] = None
    return copy


def given_back(record: Mapping[str, Any]) -> dict[str, Any]:
    """The answer that has this record, and all after it, come again."""
    return {"batchItemFailures": [{"itemIdentifier": record["dynamodb"]["SequenceNumber"]}]}


class Context:
    """What AWS's client hands to a function."""

    def __init__(self, remaining: float = 30.0) -> None:
        self.aws_request_id = "request-1"
        self.function_name = "shop-updater"
        self._remaining = remaining

    def get_remaining_time_in_millis(self) -> int:
        return int(self._remaining * 1000)


class _Store:
    """A build's store that fails when a test says so."""

    def __init__(self, store: ProjectionStore, models: Models) -> None:
        self._store = store
        self._models = models

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def write(self, batch: Batch) -> None:
        await self._models.before_write(self._store.name, batch)
        await self._store.write(batch)
        self._models.written.append((self._store.name, batch))


class Models:
    """Real read models, whose catalog hands out stores that can fail."""

    def __init__(self, models: SqliteReadModels) -> None:
        self.real = models
        self.written: list[tuple[BuildName, Batch]] = []
        self.opened: list[BuildName] = []
        self.down: Exception | None = None
        """Raised by everything that is asked of the catalog."""

    async def before_write(self, name: BuildName, batch: Batch) -> None:
        """May raise, or wait."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real.builds, name)

    async def builds(self, projection: str | None = None) -> Any:
        if self.down is not None:
            raise self.down
        return await self.real.builds.builds(projection)

    async def open(self, projection: Any, name: BuildName, definition: Any) -> _Store:
        store = await self.real.builds.open(projection, name, definition)
        self.opened.append(name)
        return _Store(store, self)


class Bench:
    """A handler, its journal, and the read models it writes."""

    def __init__(self, world: World, models: SqliteReadModels, totals: Totals, **settings: Any) -> None:
        self.world = world
        self.totals = totals
        self.models = Models(models)
        self.feed = Feed(world.journal)
        self.telemetry = ParkedCounter()
        self.opens = 0
        self.pauses: list[float] = []
        self.handler = self.another(**settings)

    def another(self, **settings: Any) -> LambdaHandler:
        """Another environment of the function, cold."""

        async def pause(seconds: float) -> None:
            self.pauses.append(seconds)

        return LambdaHandler(
            environ={},
            settings=LambdaHandlerSettings(**settings),
            prepare=lambda environ, directory: LambdaParts(
                Settings(metrics_namespace="shop"), Source(TABLE, "eu-west-1", commit_of), self.telemetry, self._open
            ),
            pause=pause,
            jitter=lambda: 1.0,
        )

    async def _open(self) -> Warm:
        self.opens += 1
        updater = PushedUpdater(
            projections=[self.totals.projection],
            deciders=self.world.deciders,
            journal=self.feed,
            builds=self.models,
            codec=EventCodec(self.world.codec.schema, self.world.protector, self.telemetry),
            protector=self.world.protector,
            telemetry=self.telemetry,
            clock=self.world.clock,
            pause=_at_once,
        )
        return Warm(updater, updater.close)

    async def invoke(self, records: Sequence[Any], *, remaining: float = 30.0) -> dict[str, Any]:
        return await self.handler.answer({"Records": list(records)}, Context(remaining))

    async def records(self) -> list[dict[str, Any]]:
        """What the stream has of everything that happened, in order."""
        commits: list[Commit] = []
        position = START
        while (page := await self.world.journal.feed(position)).commits:
            position = page.position
            commits += page.commits
        return [record_of(commit, 100 + place) for place, commit in enumerate(commits)]

    async def build(self, *, promote: bool = True, totals: Totals | None = None) -> BuildName:
        """Makes a build, as the updater would; `promote` makes it the live one."""
        totals = totals or self.totals
        subscription = Subscription(totals.projection, self.world.deciders)
        build = await self.models.real.builds.create(totals.projection, subscription.definition)
        if promote:
            await self.models.real.builds.promote(build.name)
        return build.name

    async def live(self) -> BuildName:
        builds = await self.models.real.builds.builds()
        return next(build.name for build in builds if build.state is BuildState.LIVE)

    async def rows(self, table: Table | None = None) -> list[tuple[Any, ...]]:
        """The rows of the live build: `steps` unless told otherwise."""
        chosen = self.totals.steps if table is None else table
        async with self.models.real.database.open([self.totals.projection]) as read:
            found = await read.all(select(chosen).order_by(*chosen.primary_key.columns))
        return [tuple(row) for row in found]

    async def guard(self, stream: str, name: BuildName | None = None) -> int:
        progress = await self.models.real.builds.progress(name or await self.live(), [stream])
        return progress[stream].sequence_number

    async def parked(self, stream: str) -> ParkedStream | None:
        progress = await self.models.real.builds.progress(await self.live(), [stream])
        return progress[stream].parked


async def _at_once(attempt: int) -> None: ...


@asynccontextmanager
async def a_bench(
    directory: Path, *, built: bool = True, totals: Totals | None = None, **settings: Any
) -> AsyncIterator[Bench]:
    """A bench in an empty directory; `built` with one live build."""
    world = await World.new()
    models = await SqliteReadModels.open(directory, clock=world.clock)
    bench = Bench(world, models, totals or Totals(), **settings)
    try:
        if built:
            await bench.build()
        yield bench
    finally:
        await bench.handler.close()
        await models.close()


def counts_in(output: str) -> dict[str, Any]:
    """The counts of the last invocation, from what it logged."""
    lines = [json.loads(line) for line in output.splitlines() if '"_aws"' in line]
    found: dict[str, Any] = lines[-1]
    return found
