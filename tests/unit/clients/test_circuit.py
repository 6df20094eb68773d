"""When calls to a store that does not answer are stopped, and when they go again."""

from __future__ import annotations

import pytest

from kiseki.clients.circuit import Circuit, CircuitOpen


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def circuit(clock: Clock) -> Circuit:
    return Circuit(clock=clock, failures=3, window=0.5, pause=1.0)


def fail(circuit: Circuit, clock: Clock, times: int = 3) -> None:
    """So often, and over a second."""
    for _ in range(times):
        circuit.failed(circuit.enter())
        clock.time += 1.0 / times


def wait_of(circuit: Circuit) -> float:
    with pytest.raises(CircuitOpen) as caught:
        circuit.enter()
    return caught.value.seconds


def test_calls_go_while_the_store_answers(circuit: Circuit, clock: Clock) -> None:
    for _ in range(10):
        fail(circuit, clock, 2)
        circuit.succeeded(circuit.enter())
    assert circuit.enter() is False


def test_it_opens_after_failures_in_a_row(circuit: Circuit, clock: Clock) -> None:
    fail(circuit, clock, 2)
    assert circuit.failed(circuit.enter())
    assert wait_of(circuit) == pytest.approx(1.0)
    clock.time += 0.75
    assert wait_of(circuit) == pytest.approx(0.25)


def test_connections_that_are_dropped_at_one_moment_are_no_outage(circuit: Circuit, clock: Clock) -> None:
    for _ in range(64):
        assert not circuit.failed(circuit.enter())
    clock.time += 0.5
    assert circuit.failed(circuit.enter())


def test_after_a_pause_one_call_tries(circuit: Circuit, clock: Clock) -> None:
    fail(circuit, clock)
    clock.time += 1.0
    assert circuit.enter() is True
    assert wait_of(circuit) == 0.0


def test_the_call_that_tries_closes_it(circuit: Circuit, clock: Clock) -> None:
    fail(circuit, clock)
    clock.time += 1.0
    circuit.succeeded(circuit.enter())
    assert [circuit.enter() for _ in range(3)] == [False] * 3
    circuit.failed(False)
    circuit.failed(False)
    assert circuit.enter() is False, "the count begins anew"


def test_the_call_that_tries_opens_it_again(circuit: Circuit, clock: Clock) -> None:
    fail(circuit, clock)
    clock.time += 1.0
    assert not circuit.failed(circuit.enter()), "it was open before"
    assert wait_of(circuit) == pytest.approx(1.0)
    clock.time += 1.0
    assert circuit.enter() is True


def test_when_the_call_that_tries_goes_away_another_tries(circuit: Circuit, clock: Clock) -> None:
    fail(circuit, clock)
    clock.time += 1.0
    circuit.left(circuit.enter())
    assert circuit.enter() is True


def test_calls_from_before_neither_prolong_it_nor_make_room(circuit: Circuit, clock: Clock) -> None:
    early = [circuit.enter() for _ in range(3)]
    fail(circuit, clock)
    circuit.failed(early[0])
    clock.time += 1.0
    probe = circuit.enter()
    assert probe is True
    circuit.left(early[1])
    circuit.failed(early[2])
    assert wait_of(circuit) == 0.0, "one still tries"
    circuit.succeeded(probe)
    assert circuit.enter() is False


def test_an_answer_from_before_closes_it(circuit: Circuit, clock: Clock) -> None:
    early = circuit.enter()
    fail(circuit, clock)
    circuit.succeeded(early)
    assert circuit.enter() is False
