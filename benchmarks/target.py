"""What the runner needs to know about a server in order to start, load and check it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.workload import Endpoint


@dataclass(frozen=True)
class Target:
    """One server on a fresh folder; without a query endpoint there is nothing to check afterwards.

    `lag` tells how many events the read model is behind, where the read model follows later.
    """

    arguments: Sequence[str]
    ready_url: str
    command: Endpoint
    query: Endpoint | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    lag: Callable[[], float] | None = None
