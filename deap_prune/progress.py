"""Progress bars on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from deap_prune.evolution.generation import Generation
    from deap_prune.fitness.evaluator import Evaluator

T = TypeVar("T")


def track(items: Sequence[T] | Iterable[T], description: str, *, shown: bool) -> Iterator[T]:
    """Iterate, with a progress bar if ``shown`` and standard error is a terminal."""
    from rich.console import Console
    from rich.progress import track as bar

    console = Console(stderr=True)
    if shown and console.is_terminal:
        yield from bar(items, description=description, console=console, transient=True)
    else:
        yield from items


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


class SearchBar:
    """Progress of a run: generation, best values, hypervolume, evaluations, cache hits, time left.

    Args:
        generations: Number of generations after the initial population.
        evaluator: Evaluator with the counters.
        shown: Show the bar if standard error is a terminal.
    """

    def __init__(self, generations: int, evaluator: Evaluator, *, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        self._bar = Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))
        self._evaluator = evaluator
        self._task = self._bar.add_task("evaluating the first population", total=generations + 1)

    def __enter__(self) -> Callable[[Generation], None]:
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
