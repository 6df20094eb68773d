"""The Lambda handler when a restore puts another journal table in force: records of the old one are not applied."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from kiseki.clients.dynamodb_errors import DynamoDbUnavailable
from kiseki.journal.dynamodb.items import commit_of
from kiseki.service.lambda_handler import LambdaHandler
from kiseki.service.lambda_parts import LambdaParts, Source
from kiseki.service.settings import Settings
from tests.unit.projection.parts import Counted
from tests.unit.service.lambda_bench import ARN, FINE, Context, a_bench, counts_in, given_back, record_of

RESTORED = "shop-r20261124T154357Z-3912c5-journal"


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


async def test_records_count_when_their_table_is_in_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = ["shop-journal"]

    async def in_force() -> Source:
        if not tables:
            raise DynamoDbUnavailable("GetItem on shop-operations: ThrottlingException")
        return Source(tables[0], "eu-west-1", commit_of)

    async with a_bench(tmp_path) as bench:
        first = await bench.world.facts.happen("Counter-a", Counted(1))
        second = await bench.world.facts.happen("Counter-b", Counted(2))
        handler = LambdaHandler(
            environ={},
            prepare=lambda environ, directory: LambdaParts(
                Settings(), Source("shop-journal", "eu-west-1", commit_of), bench.telemetry, bench._open, in_force
            ),
        )
        assert await handler.answer({"Records": [record_of(first, 1)]}, Context()) == FINE
        assert (await bench.rows(), bench.opens) == ([("a", 1, 1)], 1)

        tables[0] = RESTORED
        assert await handler.answer({"Records": [record_of(second, 2)]}, Context()) == FINE
        assert await bench.rows() == [("a", 1, 1)]
        assert counts_in(capsys.readouterr().out)["foreign"] == 1
        restored = record_of(second, 3, arn=ARN.replace("shop-journal", RESTORED))
        assert await handler.answer({"Records": [restored]}, Context()) == FINE
        assert (await bench.rows(), bench.opens) == ([("a", 1, 1), ("b", 1, 2)], 2)

        tables.clear()
        capsys.readouterr()
        assert await handler.answer({"Records": [restored]}, Context()) == given_back(restored)
        output = capsys.readouterr().out
        assert counts_in(output)["redelivered"] == 1
        assert "nobody knows whether they count" in output
        await handler.close()
