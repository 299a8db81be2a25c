"""Progress of a search: a bar in a terminal, log lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable

from deap_prune.evolution.generation import Generation
from deap_prune.fitness.evaluator import Evaluator
from deap_prune.progress import duration, log_line


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
            log_line("evaluating the first population")
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
            log_line(f"generation {state.number} of {self._generations}: {text}; {self._time_left(state.number)}")

    def _time_left(self, number: int) -> str:
        """Time since the start, and an estimate of the time until the last generation."""
        if self._first is None:
            self._first = number
        passed = time.monotonic() - self._begun
        left = passed / (number - self._first + 1) * (self._generations - number)
        return f"{duration(passed)}, about {duration(left)} left"
