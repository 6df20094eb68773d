"""`BatchedCalls`: many asynchronous calls as few, for key stores that are reached through a network.

`GroupedCalls` is its sister for stores that work on a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

__all__ = ["BatchedCalls"]

Item = TypeVar("Item")
Result = TypeVar("Result")


class BatchedCalls(Generic[Item, Result]):
    """Puts what is asked in one turn of the loop, and while enough calls run, into the next call.

    All who were in a group get its result, or its error. A caller that is cancelled leaves the others alone. Belongs to
    one event loop.
    """

    def __init__(self, work: Callable[[list[Item]], Awaitable[Result]], *, at_once: int = 4, group: int = 100) -> None:
        """`work` gets the items of everyone in the group, in the order they came: `group` of them, or more when one
        caller alone has more. At most `at_once` groups run at a time."""
        self._work = work
        self._at_once = at_once
        self._group = group
        self._waiting: list[tuple[Sequence[Item], asyncio.Future[Result]]] = []
        self._running: set[asyncio.Task[None]] = set()
        self._is_starting = False

    async def ask(self, items: Sequence[Item]) -> Result:
        """The result for the group that these items went with. Raises what `work` raises."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((items, future))
        self._start()
        return await future

    def _start(self) -> None:
        if self._waiting and not self._is_starting and len(self._running) < self._at_once:
            self._is_starting = True
            task = asyncio.create_task(self._run(), name="batched calls")
            self._running.add(task)
            task.add_done_callback(self._ended)

    async def _run(self) -> None:
        # Not before the task runs: until then others of this turn of the loop may join.
        self._is_starting = False
        group = self._take()
        self._start()
        while group:
            futures = [future for _, future in group]
            try:
                result = await self._work([item for items, _ in group for item in items])
            except asyncio.CancelledError:  # the loop ends
                for future in futures:
                    future.cancel()
                raise
            except Exception as problem:  # noqa: BLE001 - each of the group raises it
                for future in _not_done(futures):
                    future.set_exception(problem)
            else:
                for future in _not_done(futures):
                    future.set_result(result)
            group = self._take()

    def _take(self) -> list[tuple[Sequence[Item], asyncio.Future[Result]]]:
        taken, size = 0, 0
        for items, _ in self._waiting:
            size += len(items)
            if taken and size > self._group:
                break
            taken += 1
        group, self._waiting = self._waiting[:taken], self._waiting[taken:]
        return [each for each in group if not each[1].done()] or (self._take() if group else [])

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if task.cancelled():
            self._is_starting = False
            if not self._running:  # nobody is left to work for those who wait
                for _, future in self._waiting:
                    future.cancel()
                self._waiting = []


def _not_done(futures: Sequence[asyncio.Future[Result]]) -> list[asyncio.Future[Result]]:
    """Without those whose caller was cancelled."""
    return [future for future in futures if not future.done()]
