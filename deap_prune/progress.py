"""Progress on long work: bars on standard error in a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 10


def track(items: Sequence[T] | Iterable[T], description: str, *, shown: bool, each: bool = False) -> Iterator[T]:
    """Iterate; if ``shown``, with a progress bar in a terminal, or else with a log line now and then.

    Args:
        items: What to iterate over.
        description: Text of the bar and of the lines; without it nothing is shown.
        shown: Whether progress is shown.
        each: Write a log line for each item.
    """
    from rich.console import Console
    from rich.progress import track as bar

    console = Console(stderr=True)
    if not shown or not description:
        yield from items
    elif console.is_terminal:
        yield from bar(items, description=description, console=console, transient=True)
    else:
        yield from _logged(list(items), description, each)


def _logged(items: Sequence[T], description: str, each: bool) -> Iterator[T]:
    """Iterate, with a log line at the beginning, every ten seconds (or for each item) and at the end."""
    total, begun = len(items), time.monotonic()
    last = begun
    log_line(f"{description}: {total} to do")
    for number, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if each or now - last >= SECONDS_BETWEEN_LINES or number == total:
            last = now
            log_line(f"{description}: {number} of {total}, {duration(now - begun)}")


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


def step(text: str, *, shown: bool) -> None:
    """Say what is being done: a line on standard error in a terminal, a log line elsewhere."""
    from rich.console import Console

    if shown and Console(stderr=True).is_terminal:
        note(text, shown=True)
    elif shown:
        log_line(text)


def note(text: str, *, shown: bool) -> None:
    """Print a line on standard error if ``shown``."""
    from rich.console import Console

    if shown:
        Console(stderr=True).print(text, highlight=False, soft_wrap=True)


@contextmanager
def training_bar(unit: str, total: int, *, shown: bool, completed: int = 0) -> Iterator[Callable[..., None]]:
    """A bar over the epochs or steps of a training on standard error; call it with ``completed=`` and ``note=``.

    Args:
        unit: What is counted: "epoch" or "step".
        total: How many there are.
        shown: False for no bar.
        completed: How many are done already.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    digits = 1 if unit == "epoch" else 0
    count = TextColumn(f"{unit} {{task.completed:.{digits}f}}/{{task.total}}")
    columns = (count, BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        yield partial(bar.update, bar.add_task("", total=total, completed=completed, note=""))
