"""Progress on long work: bars on standard error in a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from deap_prune.evolution.generation import Generation
    from deap_prune.fitness.evaluator import Evaluator

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 10


def track(items: Sequence[T] | Iterable[T], description: str, *, shown: bool) -> Iterator[T]:
    """Iterate; if ``shown``, with a progress bar in a terminal, or else with a log line now and then.

    Args:
        items: What to iterate over.
        description: Text of the bar and of the lines; without it nothing is shown.
        shown: Whether progress is shown.
    """
    from rich.console import Console
    from rich.progress import track as bar

    console = Console(stderr=True)
    if not shown or not description:
        yield from items
    elif console.is_terminal:
        yield from bar(items, description=description, console=console, transient=True)
    else:
        yield from _logged(list(items), description)


def _logged(items: Sequence[T], description: str) -> Iterator[T]:
    """Iterate, with a log line at the beginning, every ten seconds and at the end."""
    total, begun = len(items), time.monotonic()
    last = begun
    _log(f"{description}: {total} to do")
    for number, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES or number == total:
            last = now
            _log(f"{description}: {number} of {total}, {_seconds(now - begun)}")


def _log(text: str) -> None:
    """A line of the logger ``deap_prune.progress``, which writes to standard error unless logging is configured."""
    logger = logging.getLogger("deap_prune.progress")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not logger.hasHandlers():
        logger.addHandler(logging.StreamHandler())
    logger.info(text)


def _seconds(seconds: float) -> str:
    """A duration for people: 8 s, 3 min, 2.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


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


class SearchProgress:
    """Progress of a run: generation, best values, hypervolume, evaluations, cache hits, time left.

    A bar in a terminal; elsewhere a log line per generation.

    Args:
        generations: Number of generations after the initial population.
        evaluator: Evaluator with the counters.
        shown: Whether progress is shown.
    """

    def __init__(self, generations: int, evaluator: Evaluator, *, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        self._bar = Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))
        self._logs = shown and not console.is_terminal
        self._generations, self._evaluator, self._begun = generations, evaluator, time.monotonic()
        self._task = self._bar.add_task("evaluating the first population", total=generations + 1)
        self._first: int | None = None

    def __enter__(self) -> Callable[[Generation], None]:
        self._begun = time.monotonic()
        if self._logs:
            _log("evaluating the first population")
        self._bar.start()
        return self._update

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def _update(self, state: Generation) -> None:
        record, counters = state.logbook[-1], self._evaluator.counters
        best = ", ".join(f"{name} {record[name]:.3f}" for name in self._evaluator.names)
        counts = f"{counters.candidates} evaluated, {counters.cache_hits} cached"
        volume = f"hypervolume {record['hypervolume']:.4f}; " if "hypervolume" in record else ""
        text = f"best {best}; {volume}{counts}"
        self._bar.update(self._task, completed=state.number + 1, description=text)
        if self._logs:
            _log(f"generation {state.number} of {self._generations}: {text}; {self._time_left(state.number)}")

    def _time_left(self, number: int) -> str:
        """Time since the start, and an estimate of the time until the last generation."""
        if self._first is None:
            self._first = number
        passed = time.monotonic() - self._begun
        left = passed / (number - self._first + 1) * (self._generations - number)
        return f"{_seconds(passed)}, about {_seconds(left)} left"
