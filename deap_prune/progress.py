"""Progress on long work: bars on standard error in a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
Shown = bool | Literal["bar", "log"]
"""Whether and how progress is shown: True is a bar in a terminal and log lines elsewhere; False is nothing."""

SECONDS_BETWEEN_LINES = 10


def console_of(shown: Shown) -> Console | None:
    """The console of a bar on standard error; None if log lines are due, or nothing."""
    from rich.console import Console

    console = Console(stderr=True, force_terminal=True if shown == "bar" else None)
    return console if shown and shown != "log" and console.is_terminal else None


def track(items: Sequence[T] | Iterable[T], description: str, *, shown: Shown, each: bool = False) -> Iterator[T]:
    """Iterate; if ``shown``, with a progress bar, or with a log line now and then.

    Args:
        items: What to iterate over.
        description: Text of the bar and of the lines; without it nothing is shown.
        shown: Whether and how progress is shown.
        each: Write a log line for each item.
    """
    from rich.progress import track as bar

    if not shown or not description:
        yield from items
    elif console := console_of(shown):
        yield from bar(items, description=description, console=console, transient=True)
    else:
        yield from _logged(list(items), description, each)


def _logged(items: Sequence[T], description: str, each: bool) -> Iterator[T]:
    """Iterate, with a log line at the beginning, every ten seconds (or for each item) and at the end."""
    total, lines = len(items), _Lines(description)
    if not total:
        return
    log_line(f"{description}: {total} to do")
    for number, item in enumerate(items, start=1):
        yield item
        lines.add(number, total, due=each or number == total)


class _Lines:
    """Log lines that say how much is done and how long the rest takes."""

    def __init__(self, description: str, done: float = 0) -> None:
        self._description, self._at_first = description, done
        self._begun = self._last = time.monotonic()

    def add(self, done: float, total: float, *, note: str = "", due: bool = False) -> None:
        """Write a line if it is due, or ten seconds have passed without one."""
        now = time.monotonic()
        if not due and now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last, passed, new = now, now - self._begun, done - self._at_first
        left = f", about {duration(passed / new * (total - done))} left" if new > 0 and done < total else ""
        log_line(f"{self._description}: {done:g} of {total:g}, {duration(passed)}{left}{note and f'; {note}'}")


def log_line(text: str) -> None:
    """Write a line to the logger ``deap_prune.progress``: to standard error unless logging is configured."""
    logger = logging.getLogger("deap_prune.progress")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not logger.hasHandlers():
        logger.addHandler(logging.StreamHandler())
    logger.info(text)


def duration(seconds: float) -> str:
    """A duration in a readable unit: 8 s, 3 min, 2.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def step(text: str, *, shown: Shown) -> None:
    """Say what is being done, or what came of it: a line on standard error in a terminal, a log line elsewhere."""
    if console := console_of(shown):
        console.print(text, highlight=False, soft_wrap=True, markup=False)
    elif shown:
        log_line(text)


@contextmanager
def training_bar(unit: str, total: int, *, shown: Shown, completed: int = 0) -> Iterator[Callable[..., None]]:
    """Progress over the epochs or steps of a training; call it with ``completed=`` and ``note=``.

    Args:
        unit: What is counted: "epoch" or "step".
        total: How many there are.
        shown: Whether and how progress is shown.
        completed: How many are done already.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    if console := console_of(shown):
        digits = 1 if unit == "epoch" else 0
        count = TextColumn(f"{unit} {{task.completed:.{digits}f}}/{{task.total}}")
        columns = (count, BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        with Progress(*columns, console=console) as bar:
            yield partial(bar.update, bar.add_task("", total=total, completed=completed, note=""))
        return
    lines = _Lines(unit, completed)

    def write(*, completed: float, note: Any = "") -> None:
        if shown:  # an epoch ends with a note; every step has one
            lines.add(completed, total, note=str(note), due=bool(note) if unit == "epoch" else completed == total)

    yield write
