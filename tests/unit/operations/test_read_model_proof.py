"""Whether a journal has all that the read models of a backup have applied: proved, or refused."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import msgspec
import pytest

from kiseki.journal.memory import MemoryJournal
from kiseki.operations.backup.manifest import FORMAT, Made, Manifest, Part, decode_manifest, encode_manifest
from kiseki.operations.backup.port import Progress
from kiseki.operations.backup.read_models import ReadModelsOfOneLife, refuse_unproved
from kiseki.operations.errors import BackupRefused, RestoreRefused
from kiseki.projection.port import Build, BuildCatalog, BuildMissing, BuildName, BuildState
from kiseki.testing.journal_conformance import SetClock, encoded, metadata
from tests.unit.operations.parts import no_progress

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ONE, TWO = BuildName("totals", 1, 1), BuildName("totals", 2, 1)


class Restored:
    """What is asked of the catalog of a throw-away copy; None instead of guards is a build that is not there."""

    def __init__(self, guards: Mapping[BuildName, Mapping[str, int] | None]) -> None:
        self._guards = guards

    async def builds(self) -> Sequence[Build]:
        return [
            Build(name=name, state=BuildState.LIVE, created_at=NOW, promoted_at=NOW, retired_at=None, problem=None)
            for name in self._guards
        ]

    async def guards(self, name: BuildName, *, after: str = "", limit: int = 500) -> Sequence[tuple[str, int]]:
        guards = self._guards[name]
        if guards is None:
            raise BuildMissing("gone")
        return sorted((stream, number) for stream, number in guards.items() if stream > after)[:limit]


def restored(guards: Mapping[BuildName, Mapping[str, int] | None]) -> BuildCatalog:
    return cast("BuildCatalog", Restored(guards))


async def a_journal(streams: Mapping[str, int]) -> MemoryJournal:
    journal = MemoryJournal(clock=SetClock())
    for stream, events in streams.items():
        for number in range(events):
            await journal.append(stream, number, [encoded("a")], metadata=metadata(f"{stream} {number}"))
    return journal


def of_life(life: str) -> Manifest:
    made = Made(store="x", method="x", as_of=NOW, journal_life=life)
    return Manifest(
        format=FORMAT,
        id="20260101T000000Z-abcdef",
        part=Part.READ_MODELS,
        kiseki="1",
        started_at=NOW,
        finished_at=NOW,
        made=made,
        files=(),
    )


async def test_what_the_journal_has_is_proved() -> None:
    journal = await a_journal({"Thing-1": 3, "Thing-2": 1, "Newer-1": 2})
    builds = restored({ONE: {"Thing-1": 3, "Thing-2": 1}, TWO: {"Thing-1": 2}, BuildName("gone", 1, 1): None})
    await refuse_unproved(of_life(await journal.life()), builds, journal, no_progress)


@pytest.mark.parametrize("ahead", [{"Thing-1": 4}, {"Thing-1": 3, "Unheard-of": 1}])
async def test_a_guard_ahead_is_refused_in_any_build(ahead: dict[str, int]) -> None:
    journal = await a_journal({"Thing-1": 3})
    with pytest.raises(RestoreRefused, match=r"would be passed over.*nothing was changed.*projection rebuild"):
        await refuse_unproved(
            of_life(await journal.life()), restored({ONE: {"Thing-1": 3}, TWO: ahead}), journal, no_progress
        )


async def test_guards_are_looked_at_to_the_last_page() -> None:
    guards = {f"Thing-{number:04}": 1 for number in range(1_001)}
    journal = await a_journal(guards)
    manifest = of_life(await journal.life())
    await refuse_unproved(manifest, restored({ONE: guards}), journal, no_progress)
    with pytest.raises(RestoreRefused, match="Thing-1000 up to 2, and the journal has it up to 1"):
        await refuse_unproved(manifest, restored({ONE: {**guards, "Thing-1000": 2}}), journal, no_progress)


async def test_another_life_is_refused_though_the_numbers_fit() -> None:
    before, after = await a_journal({"Thing-1": 3}), await a_journal({"Thing-1": 3})
    builds = restored({ONE: {"Thing-1": 3}})
    with pytest.raises(RestoreRefused, match="the journal was restored since"):
        await refuse_unproved(of_life(await before.life()), builds, after, no_progress)
    with pytest.raises(RestoreRefused, match="does not say which life"):
        await refuse_unproved(of_life(""), builds, after, no_progress)
    with pytest.raises(RestoreRefused, match="there is no journal"):
        await refuse_unproved(of_life("x"), builds, None, no_progress)


class Copies:
    """A PartBackups that copies nothing."""

    store = "x"

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self._meanwhile = meanwhile
        self.forgotten: list[Manifest] = []

    async def make(self, folder: Path, progress: Progress) -> Made:
        self._meanwhile()
        return Made(store=self.store, method="x", as_of=NOW, counts={"builds": 1})

    async def forget(self, manifest: Manifest) -> None:
        self.forgotten.append(manifest)


async def test_a_backup_keeps_the_life_it_was_made_in(tmp_path: Path) -> None:
    journals: list[MemoryJournal | None] = [await a_journal({"Thing-1": 1})]

    @asynccontextmanager
    async def live() -> AsyncIterator[MemoryJournal | None]:
        yield journals[-1]

    first = journals[0]
    assert first is not None
    copies = Copies()
    made = await ReadModelsOfOneLife(copies, live).make(tmp_path, no_progress)
    assert (made.journal_life, made.counts) == (await first.life(), {"builds": 1})
    manifest = msgspec.structs.replace(of_life(""), made=made)
    assert decode_manifest(encode_manifest(manifest), where="here") == manifest
    await ReadModelsOfOneLife(copies, live).forget(manifest)
    assert copies.forgotten == [manifest]

    other = await a_journal({"Thing-1": 1})
    with pytest.raises(BackupRefused, match="restored while"):
        await ReadModelsOfOneLife(Copies(lambda: journals.append(other)), live).make(tmp_path, no_progress)
    journals.append(None)
    with pytest.raises(BackupRefused, match="there is no journal"):
        await ReadModelsOfOneLife(copies, live).make(tmp_path, no_progress)


async def test_a_journal_that_is_not_sound_proves_nothing() -> None:
    journal = await a_journal({"Thing-1": 2})
    journal._commits[0] = journal._commits[0]._replace(document=b"{}")
    with pytest.raises(RestoreRefused, match="kiseki journal verify"):
        await refuse_unproved(of_life(await journal.life()), restored({ONE: {"Thing-1": 2}}), journal, no_progress)
