"""The rules by which appends of one group land, one after another."""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

from kiseki.journal.decisions import Decisions
from kiseki.journal.port import ClaimChange, ClaimTaken, Commit, Conflict, IdempotencyRecord, IdempotencyTaken
from kiseki.kernel.errors import KisekiError
from kiseki.testing.journal_tests.parts import NOON, claim, encoded, idempotency, metadata


class Request(NamedTuple):
    commit: Commit
    claims: tuple[ClaimChange, ...]
    idempotency: IdempotencyRecord | None


def request(
    name: str, stream: str = "Thing-1", after: int = 0, *claims: ClaimChange, key: str | None = None
) -> Request:
    commit = Commit(stream=stream, first_sequence_number=after + 1, metadata=metadata(name), events=(encoded(name),))
    record = idempotency(key, stream, after + 1, expires_at=NOON + timedelta(hours=1)) if key else None
    return Request(commit, claims, record)


def judge(
    decisions: Decisions[Request], wish: Request, *, last: int = 0, there: str | None = None
) -> Commit | type[KisekiError]:
    outcome = decisions.judge(wish, last=last, there=there, own=lambda wish: wish.commit)
    return outcome if isinstance(outcome, Commit) else type(outcome)


def new(*, keys: tuple[str, ...] = (), **claims: str) -> Decisions[Request]:
    return Decisions(keys=keys, claims={("address", digest): stream for digest, stream in claims.items()})


def test_the_first_rule_that_applies_counts() -> None:
    decisions = new(keys=("k",), v="Thing-9")
    wish = request("A", "Thing-1", 1, claim("v"), key="k")
    assert judge(decisions, wish, last=5, there=metadata("A").commit_id) == wish.commit
    assert judge(decisions, wish, last=5, there=metadata("B").commit_id) is IdempotencyTaken
    assert judge(decisions, request("A", "Thing-1", 1, claim("v")), last=5) is Conflict
    assert judge(decisions, request("A", "Thing-1", 1, claim("v")), last=1) is ClaimTaken
    assert decisions.accepted == []
    assert judge(decisions, request("A", "Thing-1", 1, claim("w")), last=1) == request("A", "Thing-1", 1).commit


def test_those_before_in_the_group_count() -> None:
    decisions = new()
    first = request("A", "Thing-1", 0, claim("v"), key="k")
    assert judge(decisions, first) == first.commit
    assert judge(decisions, request("A", "Thing-1", 0, claim("v"), key="k")) == first.commit
    assert judge(decisions, request("B", "Thing-2", 0, key="k")) is IdempotencyTaken
    assert judge(decisions, request("C", "Thing-1", 0)) is Conflict
    assert judge(decisions, request("D", "Thing-2", 0, claim("v"))) is ClaimTaken
    second = request("E", "Thing-1", 1, claim("v", take=False))
    assert judge(decisions, second) == second.commit
    third = request("F", "Thing-2", 0, claim("v"))
    assert judge(decisions, third) == third.commit
    assert decisions.accepted == [first, second, third]
    assert decisions.taken() == [("address", "v", "Thing-2")]
    assert decisions.released() == []
    assert [record.key for record in decisions.records()] == ["k"]


def test_claims_change_in_their_order() -> None:
    decisions = new(v="Thing-1", w="Thing-9")
    back_and_forth = request("A", "Thing-1", 0, claim("v", take=False), claim("v"), claim("x"), claim("x", take=False))
    assert judge(decisions, back_and_forth) == back_and_forth.commit
    assert (decisions.taken(), decisions.released()) == ([], [])
    others = request("B", "Thing-1", 1, claim("w", take=False), claim("v", take=False))
    assert judge(decisions, others, last=0) == others.commit
    assert (decisions.taken(), decisions.released()) == ([], [("address", "v")])


def test_a_stream_takes_again_what_it_holds() -> None:
    decisions = new(v="Thing-1")
    again = request("A", "Thing-1", 0, claim("v"), claim("v"))
    assert judge(decisions, again) == again.commit
    assert (decisions.taken(), decisions.released()) == ([], [])


def test_a_refused_append_changes_nothing() -> None:
    decisions = new(v="Thing-9")
    assert judge(decisions, request("A", "Thing-1", 0, claim("w"), claim("v"), key="k")) is ClaimTaken
    other = request("B", "Thing-2", 0, claim("w"), key="k")
    assert judge(decisions, other) == other.commit
