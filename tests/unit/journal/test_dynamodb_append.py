"""What an append makes of the answers of DynamoDB, in the order that the contract says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from kiseki.clients.dynamodb import (
    CancellationReason,
    ConditionFailed,
    DynamoDbAddress,
    DynamoDbRefused,
    DynamoDbUnavailable,
    TransactionCanceled,
)
from kiseki.clients.errors import NotMigrated
from kiseki.journal.dynamodb import append as dynamodb_append
from kiseki.journal.dynamodb.append import StreamEnds
from kiseki.journal.dynamodb.held import ClaimAction, claim_actions, claim_key, record_put
from kiseki.journal.dynamodb.items import commit_item, document_bytes
from kiseki.journal.dynamodb.journal import DynamoDbJournal
from kiseki.journal.port import (
    ClaimChange,
    ClaimTaken,
    Commit,
    CommitTooLarge,
    Conflict,
    IdempotencyTaken,
    JournalUnavailable,
)
from kiseki.testing.journal_conformance import SetClock, claim, claimed, encoded, idempotency, metadata
from tests.integration.journal.sqlite_parts import Groups

Answer = dict[str, Any] | Exception
FINE = CancellationReason("None")
BUSY = CancellationReason("TransactionConflict")


def fault(item: Mapping[str, Any] | None = None) -> CancellationReason:
    return CancellationReason("ConditionalCheckFailed", None if item is None else dict(item))


def canceled(*reasons: CancellationReason) -> TransactionCanceled:
    return TransactionCanceled("TransactWriteItems: canceled", reasons=reasons)


class Script:
    """A client that answers what a test says, and remembers what it was asked."""

    def __init__(self, *answers: Answer) -> None:
        self.address = DynamoDbAddress("t", "eu-west-1")
        self.answers = list(answers)
        self.asked: list[tuple[str, Mapping[str, Any]]] = []

    async def call(self, operation: str, request: Mapping[str, Any], **_: Any) -> dict[str, Any]:
        self.asked.append((operation, request))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        pass

    @property
    def operations(self) -> list[str]:
        return [operation for operation, _ in self.asked]


def stored(name: str, *, events: Sequence[str] = ("a",), stream: str = "Thing-1", first: int = 1) -> dict[str, Any]:
    commit = Commit(
        stream=stream,
        first_sequence_number=first,
        metadata=metadata(name),
        events=tuple([encoded(event) for event in events]),
    )
    return commit_item(commit, document_bytes(commit)).item


async def append(script: Script, *, after: int = 0, groups: Groups | None = None, **rest: Any) -> Commit:
    journal = await DynamoDbJournal.open(
        script.address,
        clock=SetClock(),
        telemetry=groups or Groups(),
        client=script,  # type: ignore[arg-type]
        aws_time=SetClock().now,
    )
    return await journal.append("Thing-1", after, [encoded("a")], metadata=metadata("A"), **rest)


RECORD = idempotency("key", "Thing-1", 1, expires_at=SetClock().now() + timedelta(hours=1))
ALL: dict[str, Any] = {"claims": claimed("v", "w"), "idempotency": RECORD}


async def test_a_plain_append_at_a_known_end_is_one_call() -> None:
    script, groups = Script({}), Groups()
    await append(script, groups=groups)
    assert script.operations == ["PutItem"]
    assert groups.sizes == [1]


async def test_an_append_after_a_number_that_nobody_has_seen_looks_first() -> None:
    last = {"sequence-nr": {"N": "4"}, "count": {"N": "3"}}
    script = Script({"Items": [last]}, {})
    await append(script, after=6)
    assert script.operations == ["Query", "PutItem"]
    for items in ([], [last]):
        script = Script({"Items": items})
        with pytest.raises(Conflict):
            await append(script, after=5)
        assert script.operations == ["Query"]


async def test_a_taken_key_comes_before_a_place_that_is_none() -> None:
    taken = record_put("t", RECORD, SetClock().now(), SetClock().now())["Put"]["Item"]
    script = Script({"Items": []}, {"Item": taken})
    with pytest.raises(IdempotencyTaken):
        await append(script, after=5, idempotency=RECORD)
    for there in ({}, {"Item": {**taken, "expires": {"S": "2026-03-01T12:00:00.000000+00:00"}}}):
        with pytest.raises(Conflict):
            await append(Script({"Items": []}, there), after=5, idempotency=RECORD)


async def test_the_own_commit_is_found_and_reported_as_nothing_new() -> None:
    groups = Groups()
    script = Script(ConditionFailed("it is there", item=stored("A")))
    assert (await append(script, groups=groups)).metadata.commit_id == metadata("A").commit_id
    assert groups.sizes == []
    other_events = stored("A", events=("x", "y"))
    landed = await append(Script(ConditionFailed("it is there", item=other_events)))
    assert [event.event_id for event in landed.events] == [f"{'x':0>26}", f"{'y':0>26}"]


async def test_an_endpoint_that_does_not_say_what_is_there_is_asked() -> None:
    script = Script(ConditionFailed("it is there", item=None), {"Item": stored("A")})
    assert (await append(script)).metadata.commit_id == metadata("A").commit_id
    assert script.operations == ["PutItem", "GetItem"]
    with pytest.raises(Conflict):
        await append(Script(ConditionFailed("it is there", item=None), {"Item": stored("B")}))


@pytest.mark.parametrize(
    ("reasons", "error"),
    [
        ((fault(stored("B")), fault(), fault(), fault()), IdempotencyTaken),
        ((FINE, fault(), FINE, fault()), IdempotencyTaken),
        ((fault(stored("B")), FINE, fault(), BUSY), Conflict),
        ((FINE, FINE, fault(), BUSY), ClaimTaken),
    ],
)
async def test_the_first_fault_is_the_answer(reasons: Sequence[CancellationReason], error: type[Exception]) -> None:
    script = Script(canceled(*reasons))
    with pytest.raises(error):
        await append(script, **ALL)
    assert script.operations == ["TransactWriteItems"]


async def test_the_own_commit_comes_before_all_faults() -> None:
    script = Script(canceled(fault(stored("A")), fault(), fault(), BUSY))
    assert (await append(script, **ALL)).metadata.commit_id == metadata("A").commit_id


@pytest.mark.parametrize(
    "reasons",
    [
        (BUSY, fault(), FINE, FINE),
        (fault(stored("B")), BUSY, FINE, FINE),
        (FINE, FINE, BUSY, fault()),
        (CancellationReason("ThrottlingError"), FINE, fault(), FINE),
    ],
)
async def test_where_an_earlier_fault_is_not_certain_it_is_tried_again(reasons: Sequence[CancellationReason]) -> None:
    script = Script(canceled(*reasons), {})
    assert (await append(script, **ALL)).metadata.commit_id == metadata("A").commit_id
    assert script.operations == ["TransactWriteItems"] * 2


async def test_trying_again_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamodb_append, "_FIRST_PAUSE", 0.0)
    script = Script(*[canceled(BUSY, fault(), FINE, FINE)] * 50)
    with pytest.raises(JournalUnavailable, match="being written by others"):
        await append(script, **ALL)
    assert len(script.asked) < 20


async def test_releases_of_what_others_hold_are_left_out() -> None:
    script = Script(canceled(FINE, FINE, fault(), FINE), {})
    changes = [claim("mine"), claim("theirs", take=False), claim("w", take=False)]
    await append(script, claims=changes)
    first, second = (request["TransactItems"] for _, request in script.asked)
    assert len(first) == 4
    assert [*second[0:2], second[2]] == [first[0], first[1], first[3]]
    tokens = {request["ClientRequestToken"] for _, request in script.asked}
    assert len(tokens) == 2
    assert all(len(token) <= 36 for token in tokens)


async def test_the_same_append_has_the_same_token() -> None:
    scripts = [Script({}), Script({})]
    for script in scripts:
        await append(script, **ALL)
    assert scripts[0].asked == scripts[1].asked


@pytest.mark.parametrize(
    "reasons",
    [(), (fault(stored("B")),), (FINE, FINE, FINE, CancellationReason("ValidationError"))],
    ids=["none", "too few", "another kind"],
)
async def test_reasons_that_say_nothing_are_an_outage(reasons: Sequence[CancellationReason]) -> None:
    with pytest.raises(JournalUnavailable):
        await append(Script(canceled(*reasons)), **ALL)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (DynamoDbUnavailable("PutItem on t-journal: no answer in 2 s"), JournalUnavailable),
        (DynamoDbRefused("PutItem on t-journal: not allowed", kind="AccessDeniedException"), JournalUnavailable),
        (DynamoDbRefused("PutItem on t-journal: no table", kind="ResourceNotFoundException"), NotMigrated),
    ],
)
async def test_what_dynamodb_raises_becomes_an_error_of_the_journal(answer: Exception, error: type[Exception]) -> None:
    with pytest.raises(error, match="PutItem on t-journal"):
        await append(Script(answer))


async def test_more_than_a_transaction_holds_is_refused_before_anything_is_written() -> None:
    changes = claimed(*[f"v{n}" for n in range(99)])
    script = Script({})
    await append(script, claims=changes)
    assert len(script.asked[0][1]["TransactItems"]) == 100
    for more in ({"claims": claimed(*[f"v{n}" for n in range(100)])}, {"claims": changes, "idempotency": RECORD}):
        script = Script()
        with pytest.raises(CommitTooLarge, match="100 items"):
            await append(script, **more)
        assert script.asked == []


def test_the_changes_of_one_value_become_one_action() -> None:
    def actions(*takes: bool) -> ClaimAction:
        (action,) = claim_actions([claim("v", take=take) for take in takes])
        return action

    assert actions(True) == ClaimAction("address", "v", takes=True, holds=True)
    assert actions(False) == ClaimAction("address", "v", takes=False, holds=False)
    assert actions(True, False) == ClaimAction("address", "v", takes=True, holds=False)
    assert actions(False, True) == ClaimAction("address", "v", takes=True, holds=True)
    assert actions(False, True, False) == ClaimAction("address", "v", takes=True, holds=False)
    several = [claim("v"), claim("w"), ClaimChange("phone", "v", True), claim("v", take=False)]
    assert [(action.scope, action.digest) for action in claim_actions(several)] == [
        ("address", "v"),
        ("address", "w"),
        ("phone", "v"),
    ]


def test_keys_of_claims_are_never_the_same_for_other_values() -> None:
    pairs = [("a", "b#c"), ("a#b", "c"), ("a%23b", "c"), ("a", "b%23c"), ("a#b#c", ""), ("", "a#b#c")]
    assert len({claim_key(*pair) for pair in pairs}) == len(pairs)


def test_the_memory_of_ends_is_bounded_and_keeps_the_latest() -> None:
    ends = StreamEnds(streams=3)
    for n in range(5):
        ends.note(f"Thing-{n}", n + 1)
    assert [ends.is_end(f"Thing-{n}", n + 1) for n in range(5)] == [False, False, True, True, True]
    ends.note("Thing-2", 1)
    assert ends.is_end("Thing-2", 3)
    ends.note("Thing-9", 9)
    assert ends.is_end("Thing-2", 3)  # it was met again after the others
    assert not ends.is_end("Thing-3", 4)
    assert ends.is_end("anything", 0)


async def test_a_record_goes_by_the_time_of_dynamodb_however_the_clock_stands() -> None:
    clock, script = SetClock(), Script({})
    journal = await DynamoDbJournal.open(
        script.address,
        clock=clock,
        telemetry=Groups(),
        client=script,  # type: ignore[arg-type]
        aws_time=lambda: clock.now() + timedelta(days=300),
    )
    await journal.append("Thing-1", 0, [encoded("a")], metadata=metadata("A"), idempotency=RECORD)
    item = script.asked[0][1]["TransactItems"][1]["Put"]["Item"]
    ends = clock.now() + timedelta(days=300, hours=1)
    assert 0 <= int(item["expires-at"]["N"]) - ends.timestamp() < 1
    assert msgspec.json.encode(item)
