"""`DynamoDbJournalBackups`: the JournalBackups of a journal on DynamoDB. Made by the composition of operations.

Journal and claims are two tables, and AWS copies each by itself, with a minute on either side of which nobody knows
what is in it (`backups`). The claims are copied first, always, and more than two minutes earlier: what came to them
after their copy came in a transaction with a commit, and the copy of the journal has that commit, or it is later than
`as_of`. Its item says what it did to claims, so a restore does it again (`claims`), and journal and claims fit. The
other order could not be mended: claims of commits that are not there can be found, but not the releases. A restore to
a second (point-in-time recovery) takes the claims earlier than the journal, for the same reason. What of the last two
minutes is in the copy although something before it is not is dropped (`gaps`). Idempotency records have no such second
word: a command that was answered between the two copies, and is sent again after a restore with the same key, is
decided again.

Snapshots are not copied: they are made again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from kiseki.clients.dynamodb import DynamoDbAddress
from kiseki.clients.dynamodb_generations import generation_address
from kiseki.clients.dynamodb_tables import check_tables, create_tables
from kiseki.journal.dynamodb.index import TimeIndex
from kiseki.journal.dynamodb.items import timestamp
from kiseki.journal.dynamodb.journal import DynamoDbJournal
from kiseki.journal.format import FORMAT
from kiseki.journal.transfer.transferable import TransferableJournal
from kiseki.kernel.errors import KisekiError
from kiseki.kernel.ports import Clock
from kiseki.kernel.telemetry import NoTelemetry
from kiseki.operations.backup.manifest import Contents, Made, Manifest
from kiseki.operations.backup.port import Progress, Switched, nothing
from kiseki.operations.dynamodb.backups import Copying, copy_tables, delete_copies, must_be_there
from kiseki.operations.dynamodb.calls import Tables, opened_tables
from kiseki.operations.dynamodb.claims import mend_claims
from kiseki.operations.dynamodb.described import DescribedTables, describe, read_described, write_described
from kiseki.operations.dynamodb.fence import Fencing
from kiseki.operations.dynamodb.gaps import drop_after_gaps
from kiseki.operations.dynamodb.moments import AT, CLAIMS_BEFORE, ON_DEMAND
from kiseki.operations.dynamodb.parts import PARTS, SPECS
from kiseki.operations.dynamodb.restored import (
    TableSource,
    put_back,
    remove_tables,
    restore_tables,
    switch_recovery_on,
    switch_streams_on,
)
from kiseki.operations.dynamodb.runs import Runs
from kiseki.operations.dynamodb.staging import StagedTables
from kiseki.operations.errors import RestoreRefused

__all__ = ["DynamoDbJournalBackups", "DynamoDbStagedJournal"]

_COPIED: Final = ("claims", "journal")
"""In this order; see above."""
_COUNTED: Final = 10_000_000


class DynamoDbJournalBackups:
    """Backups that AWS keeps; a place holds their names, and what the tables are."""

    store = "dynamodb"

    def __init__(
        self,
        address: DynamoDbAddress,
        *,
        clock: Clock,
        writers_stopped: bool = False,
        fencing: Fencing | None = None,
        copying: Copying | None = None,
    ) -> None:
        """`writers_stopped`: the operator says that no process writes, so a switch need not see writes refused. Else
        it waits for that as `fencing` says. `copying`: how far copies lie apart, for AWS unless said."""
        self._address = address
        self._clock = clock
        self._writers_stopped = writers_stopped
        self._fencing = fencing or Fencing()
        self._copying = copying or Copying.of(address)

    async def make(self, folder: Path, progress: Progress) -> Made:
        """As PartBackups. Switches point-in-time recovery on where it is off. Of contents nothing is known: no view of
        one moment can be read, and what AWS counts is hours old."""
        async with opened_tables(self._address) as tables, Runs(tables, clock=self._clock).begun("backup-") as run:
            live = generation_address(self._address, (await tables.in_force("journal")).generation)
            described = await describe(tables, live, "journal", progress)
            await write_described(await _recoverable(tables, described, progress), folder)
            copies = await copy_tables(tables, live, _COPIED, run.name, progress, apart=self._copying.apart)
        return Made(
            store=self.store,
            method=ON_DEMAND,
            as_of=self._copying.surely_in([copies["journal"]]),
            versions={"commits": str(FORMAT)},
            references={name: copy.arn for name, copy in copies.items()},
        )

    async def forget(self, manifest: Manifest) -> None:
        """As PartBackups: deletes the backups in AWS."""
        if manifest.made.method == ON_DEMAND:
            async with opened_tables(self._address) as tables:
                await delete_copies(tables, manifest.made.references)

    @asynccontextmanager
    async def opened(self, folder: Path, manifest: Manifest) -> AsyncIterator[TransferableJournal]:
        """As JournalBackups: into tables of its own, gone at the end."""
        async with opened_tables(self._address) as tables, Runs(tables, clock=self._clock).begun("verify-") as run:
            place = generation_address(self._address, run.name)
            try:
                described = await _description(tables, folder, manifest, nothing)
                await _restore(tables, place, manifest, described, nothing)
                async with _opened(place, self._clock) as journal:
                    yield journal
            finally:
                await remove_tables(tables, place, _COPIED, alarms=False)

    async def stage(self, folder: Path, manifest: Manifest, progress: Progress) -> DynamoDbStagedJournal:
        """As JournalBackups: into tables of a new generation, with all that the live ones have."""
        async with AsyncExitStack() as opened:
            tables = await opened.enter_async_context(opened_tables(self._address))
            run = await opened.enter_async_context(Runs(tables, clock=self._clock).begun("r"))
            force = await tables.in_force("journal")
            target = generation_address(self._address, run.name)
            try:
                described = await _description(tables, folder, manifest, progress)
                await _restore(tables, target, manifest, described, progress)
                left = await _complete(tables, target, described, run.name, progress)
                written = await _written_since(tables, generation_address(self._address, force.generation), manifest)
            except BaseException:
                with suppress(KisekiError):  # the next run removes them; what was wrong first is what is said
                    await remove_tables(tables, target, PARTS["journal"], alarms=True, progress=progress)
                raise
            staged = StagedTables(
                "journal",
                tables,
                run.name,
                force,
                left=left,
                writers_stopped=self._writers_stopped,
                fencing=self._fencing,
                opened=opened.pop_all(),
                progress=progress,
            )
            return DynamoDbStagedJournal(staged, manifest, written=written, clock=self._clock)


class DynamoDbStagedJournal:
    """A StagedJournal: tables of a generation that is not in force yet."""

    def __init__(self, staged: StagedTables, manifest: Manifest, *, written: int, clock: Clock) -> None:
        """`written`: how many commits the live journal had got since the copy when this was staged."""
        self._staged = staged
        self._manifest = manifest
        self._written = written
        self._clock = clock

    @property
    def contents(self) -> Contents | None:
        """As StagedJournal."""
        return self._manifest.made.contents

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[TransferableJournal]:
        """As StagedJournal."""
        async with _opened(self._staged.address, self._clock) as journal:
            yield journal

    async def switch(self) -> Switched:
        """As Staged; `StagedTables` says what is guaranteed."""
        return await self._staged.switch(before=self._refuse_newer, after=self._look_at_live)

    async def discard(self) -> None:
        """As Staged."""
        await self._staged.discard()

    async def _refuse_newer(self) -> None:
        """Once nothing can be written any more: what came since it was compared would be lost, and nobody was asked."""
        newer = await self._newer()
        if newer:
            raise RestoreRefused(
                f"{newer:,} commits came to {self._staged.live.table('journal')} while this ran; stop kiseki, then run "
                "the same again. Nothing was changed"
            )

    async def _look_at_live(self) -> list[str]:
        """Once more, later: the index that is counted is behind the table."""
        newer = await self._newer()
        if not newer:
            return []
        return [
            f"{newer:,} commits came to {self._staged.live.table('journal')} while this ran; they are there, and not "
            "in what is live now"
        ]

    async def _newer(self) -> int:
        return max(0, await _written_since(self._staged.tables, self._staged.live, self._manifest) - self._written)


@asynccontextmanager
async def _opened(address: DynamoDbAddress, clock: Clock) -> AsyncIterator[TransferableJournal]:
    journal = await DynamoDbJournal.open(address, clock=clock, telemetry=NoTelemetry())
    try:
        yield journal
    finally:
        await journal.close()


async def _recoverable(tables: Tables, described: DescribedTables, progress: Progress) -> DescribedTables:
    """Switches point-in-time recovery on where it is off; the description with it, so a restore does so too."""
    found = []
    for each in described.tables:
        if each.name in _COPIED and not each.recovery:
            progress(f"switching point-in-time recovery of {each.table} on")
            await switch_recovery_on(tables, each.table, None)
            found.append(msgspec.structs.replace(each, recovery=True))
        else:
            found.append(each)
    return msgspec.structs.replace(described, tables=tuple(found))


async def _description(tables: Tables, folder: Path, manifest: Manifest, progress: Progress) -> DescribedTables:
    """As kept with a backup; of a restore to a second the tables are there to be looked at."""
    if manifest.made.method == ON_DEMAND:
        return await read_described(folder)
    live = generation_address(tables.address, (await tables.in_force("journal")).generation)
    return await describe(tables, live, "journal", progress)


async def _restore(
    tables: Tables, target: DynamoDbAddress, manifest: Manifest, described: DescribedTables, progress: Progress
) -> None:
    sources, claims_at = await _sources(tables, manifest)
    like = {name: described.of(name) for name in _COPIED}
    await restore_tables(tables, sources, target, like=like, progress=progress)
    dropped = await drop_after_gaps(tables, target.table("journal"), manifest.made.as_of)
    progress("making claims fit the journal")
    dropped += await mend_claims(tables, target, copied_at=claims_at, as_of=manifest.made.as_of)
    if dropped:
        progress(
            f"{dropped} commits of the last minutes are not restored: AWS's copy has them, but not all before them"
        )
    # Last, so that nobody who follows the journal ever sees what was dropped.
    await switch_streams_on(tables, target, like)


async def _sources(tables: Tables, manifest: Manifest) -> tuple[Sequence[TableSource], datetime]:
    """What to restore, and when the claims were copied."""
    references = manifest.made.references
    if manifest.made.method == ON_DEMAND:
        copies = await must_be_there(tables, references, _COPIED)
        return [TableSource(name, copies[name].arn) for name in _COPIED], copies["claims"].copied_at
    at = datetime.fromisoformat(references[AT]).astimezone(UTC)
    moments = {"claims": at - CLAIMS_BEFORE, "journal": at}
    return [TableSource(name, None, references[name], moments[name]) for name in _COPIED], moments["claims"]


async def _complete(
    tables: Tables, target: DynamoDbAddress, described: DescribedTables, generation: str, progress: Progress
) -> list[str]:
    """Makes of restored tables what the live ones are, with point-in-time recovery on even where it was off; lines for
    the operator."""
    progress("putting back what AWS does not restore")
    async with opened_tables(target) as theirs:
        await create_tables(theirs.client, SPECS["journal"])
        left = []
        for each in described.tables:
            wanted = msgspec.structs.replace(each, recovery=True) if each.name in _COPIED else each
            left += await put_back(tables, wanted, target.table(each.name), generation)
        await check_tables(theirs.client, SPECS["journal"])
    return left


async def _written_since(tables: Tables, live: DynamoDbAddress, manifest: Manifest) -> int:
    """How many commits a journal got since the copy, as its index says."""
    if await tables.describe(live.table("journal")) is None:
        return 0
    async with opened_tables(live) as theirs:
        return await TimeIndex(theirs.client).count(timestamp(manifest.made.as_of), at_most=_COUNTED)
