"""Which builds have to be kept up to date."""

from __future__ import annotations

from datetime import UTC, datetime

from kiseki.projection.port import Build, BuildName, BuildState
from kiseki.projection.records import current_builds
from tests.unit.projection.parts import Totals

PROJECTION = Totals(version=2).projection
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def build(generation: int, state: BuildState, *, answered: bool = False, version: int = 2, of: str = "totals") -> Build:
    return Build(
        name=BuildName(of, version, generation),
        state=state,
        created_at=NOW,
        promoted_at=NOW if answered else None,
        retired_at=None,
        problem=None,
    )


def current(*builds: Build) -> list[int]:
    found = current_builds(builds, PROJECTION)
    assert all((one.name.projection, one.name.version) == ("totals", 2) for one in found)
    return [one.name.generation for one in found]


def test_the_newest_in_building_goes_before_the_live_one() -> None:
    builds = [
        build(1, BuildState.RETIRED, answered=True),
        build(2, BuildState.LIVE, answered=True),
        build(3, BuildState.BUILDING),
        build(10, BuildState.BUILDING),
    ]
    assert current(*builds) == [10, 2]
    assert current(*reversed(builds)) == [10, 2]


def test_while_another_version_is_live_the_one_that_answers_this_version_counts() -> None:
    live = build(1, BuildState.LIVE, answered=True, version=1)
    retired = [build(1, BuildState.RETIRED, answered=True), build(2, BuildState.RETIRED, answered=True)]
    assert current(live, *retired) == [2]
    assert current(live, *retired, build(3, BuildState.BUILDING)) == [3, 2]
    assert current(live, build(4, BuildState.RETIRED)) == []


def test_other_projections_and_versions_do_not_count() -> None:
    builds = [
        build(1, BuildState.LIVE, answered=True, version=3),
        build(1, BuildState.LIVE, answered=True, of="others"),
        build(2, BuildState.BUILDING, version=1),
    ]
    assert current(*builds) == []
