"""Tables and progress bars, for people who look at a terminal. Used by the commands that print more than a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

__all__ = ["people_table", "print_table", "progress_bar"]

_WIDTH_OF_FILES: Final = 160
"""Columns of what goes into a file or a pipe, which has no width of its own."""


def people_table(title: str, *headings: str) -> Table:
    """An empty table. Cells are plain text: nothing in them is taken for markup."""
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def print_table(table: Table) -> None:
    """Prints a table to standard output."""
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH_OF_FILES
    console.print(table)


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar on standard error while the context lasts, when that is a terminal.

    Gives the function that tells it how many are done.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)

        def advance_to(done: int) -> None:
            progress.update(task, completed=done, total=max(total, done))

        yield advance_to
