"""Unit: how many connections a server takes, from a number or a class of RDS."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kiseki.operations.errors import OperationFailed
from kiseki.operations.scaling.limits import (
    OWN_RESERVED,
    RDS_RESERVED,
    class_memory,
    limit_of,
    rds_connections,
    smallest_memory,
)

GIB = 1_024**3


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("db.t3.micro", 1),
        ("db.t4g.small", 2),
        ("db.t4g.medium", 4),
        ("db.t4g.large", 8),
        ("db.t3.xlarge", 16),
        ("db.m6g.large", 8),
        ("db.m7g.4xlarge", 64),
        ("db.r6g.large", 16),
        ("db.r7g.xlarge", 32),
        ("db.r6i.32xlarge", 1_024),
    ],
)
def test_the_memory_of_classes_as_aws_lists_it(name: str, gib: int) -> None:
    assert class_memory(name) == gib * GIB


@pytest.mark.parametrize(
    "name",
    ["", "0", "-1", "1000000", "db.x2g.large", "db.m6g", "db.m6g.huge", "db.m6g.micro", "db.r6g.1xlarge", "many"],
)
def test_what_is_neither_number_nor_class_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(OperationFailed, match="max_connections of the server as a number") as told:
        limit_of(name)
    assert "\n" not in str(told.value)


def test_what_an_ordinary_account_cannot_have_is_counted() -> None:
    assert limit_of("200")[:2] == (200, OWN_RESERVED)
    assert limit_of("db.t3.micro").reserved == RDS_RESERVED


@given(st.integers(1, 2_000), st.integers(1, 2_000))
def test_more_memory_takes_no_fewer_and_never_more_than_the_formula(one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert rds_connections(small * GIB) <= rds_connections(large * GIB) <= 5_000
    assert rds_connections(small * GIB) <= small * GIB / 9_531_392


@given(st.integers(1, 6_000))
def test_the_smallest_memory_that_is_proposed_suffices_and_half_of_it_does_not(connections: int) -> None:
    memory = smallest_memory(connections)
    if memory is None:
        assert connections > 5_000
        return
    assert rds_connections(memory * GIB) >= connections
    assert memory == 1 or rds_connections(memory * GIB // 2) < connections
