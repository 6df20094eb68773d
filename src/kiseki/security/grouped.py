"""Many calls as few: `GroupedCalls` puts what is asked while a store is busy into its next call, and `each` makes
calls for many items with a bound on how many run at once. Used by the key store, the Protector and re-wrapping."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from typing import Final, Generic, TypeVar

__all__ = ["GroupedCalls", "each"]

_AT_ONCE: Final = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


class GroupedCalls(Generic[Item, Result]):
    """Runs a blocking function on a thread, one call at a time, for all who wait: one durable write for many callers.

    All who were in a group get its result, or its error. A caller that is cancelled leaves the others alone. Belongs to
    one event loop at a time.
    """

    def __init__(self, work: Callable[[list[Item]], Result], executor: Executor) -> None:
        """`work` gets the items of everyone in the group, in the order they came."""
        self._work = work
        self._executor = executor
        self._waiting: list[tuple[Sequence[Item], asyncio.Future[Result]]] = []
        self._task: asyncio.Task[None] | None = None

    async def ask(self, items: Sequence[Item]) -> Result:
        """The result for the group that these items went with. Raises what `work` raises."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.append((items, future))
        if self._task is None:
            self._task = loop.create_task(self._run(), name="grouped calls")
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        waiting: list[asyncio.Future[Result]] = []
        try:
            while self._waiting:
                group, self._waiting = self._waiting, []
                everything = [item for items, _ in group for item in items]
                waiting = [future for _, future in group]
                call = loop.run_in_executor(self._executor, self._work, everything)
                await asyncio.wait([call])
                problem = call.exception()
                for future in waiting:
                    if future.done():  # its caller was cancelled
                        continue
                    if problem is None:
                        future.set_result(call.result())
                    else:
                        future.set_exception(problem)
        finally:
            self._task = None
            # Only a loop that ends leaves somebody here.
            for future in [*waiting, *(future for _, future in self._waiting)]:
                future.cancel()
            self._waiting = []


async def each(work: Callable[[Item], Coroutine[None, None, Result]], items: Sequence[Item]) -> list[Result]:
    """The results for all items in their order, at most 16 at once. Raises what the first to fail raises."""
    if len(items) == 1:
        return [await work(items[0])]

    # One task for a part of the items, not for each: most calls do not suspend, and a task costs more than they do.
    async def some(part: Sequence[Item]) -> list[Result]:
        return [await work(item) for item in part]

    size = -(-len(items) // _AT_ONCE) or 1
    parts = await asyncio.gather(*(some(items[start : start + size]) for start in range(0, len(items), size)))
    return [result for part in parts for result in part]
