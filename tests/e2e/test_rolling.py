"""A rolling replacement of a command API under load: no request fails, and what was acknowledged is stored once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.pairs import make_pair
from tests.e2e.rolling import roll, stored_names


@pytest.mark.parametrize("pair", ["sqlite+sqlite", "postgresql+postgresql"])
async def test_replacing_every_process_fails_no_request(
    tmp_path: Path, pair: str, request: pytest.FixtureRequest
) -> None:
    stores = make_pair(pair, request)
    rolled = await roll(
        tmp_path,
        rounds=3,
        connections=32,
        pause=0.02,
        health_interval=0.05,
        drain_delay=0.5,
        environment=stores.environment,
    )
    print(
        f"{pair}: {rolled.requests} requests in {rolled.seconds:.1f} s, {rolled.replacements} replacements, "
        f"{len(rolled.failures)} failures, longest pause {rolled.longest_pause * 1000:.0f} ms, "
        f"slowest request {rolled.slowest_request * 1000:.0f} ms"
    )
    assert rolled.failures == []
    assert rolled.replacements == 6
    assert rolled.exit_codes == [0] * 8
    assert rolled.complaints == []
    # Every process has had its share, or nothing was shown.
    assert len(rolled.served) == 8
    assert min(rolled.served.values()) > 10
    assert rolled.requests == len(rolled.acknowledged) > 1_000
    assert await stored_names(stores.settings(tmp_path / "data")) == Counter(rolled.acknowledged)
