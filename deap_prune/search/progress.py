"""Progress of a search: what is being done, a bar by candidate in a terminal, log lines elsewhere, an estimate."""

from __future__ import annotations

import math
import time
from threading import Event, Thread
from typing import Any

from deap_prune.evolution.generation import Generation
from deap_prune.fitness.evaluator import Evaluator
from deap_prune.fitness.trial import RefinementCost
from deap_prune.options import SearchOptions
from deap_prune.progress import SECONDS_BETWEEN_LINES, Shown, console_of, duration, log_line, step

LOOK = 0.25  # seconds between two looks at the evaluator's counters


class SearchProgress:
    """Progress of a run by candidate: generation, best network, hypervolume, time left, and an estimate at first.

    A thread reads the evaluator's counters, so that evaluations need not report. In a terminal it moves a bar;
    elsewhere it writes a log line when ten seconds have passed without one.

    Args:
        options: Size and end of the search.
        evaluator: Evaluator with the counters; the dense network is evaluated.
        cost: What refinement takes at the end; None if it is not known, or nothing is refined.
        shown: Whether and how progress is shown.
    """

    def __init__(
        self, options: SearchOptions, evaluator: Evaluator, cost: RefinementCost | None = None, *, shown: Shown
    ) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.table import Column

        console = console_of(shown)
        text = TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis"))
        columns = (text, BarColumn(bar_width=8), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
        self._bar = Progress(*columns, console=console, transient=True, disable=console is None)
        self._options, self._evaluator, self._cost = options, evaluator, cost
        self._shown, self._logs = shown, bool(shown) and console is None
        self._total = options.population * (options.generations + 1)
        self._task = self._bar.add_task("first population", total=self._total, left="")
        self._reached, self._candidates = 0, 0  # done at the end of the last generation, and counted then
        self._begun, self._at_first = time.monotonic(), 0
        self._last_line, self._estimated = self._begun, False
        self._ended = Event()
        self._watch = Thread(target=self._look, daemon=True)

    def __enter__(self) -> SearchProgress:
        return self

    def begin(self, state: Generation | None) -> None:
        """Start the bar and the thread.

        Args:
            state: The state that the run goes on from; None: it begins.
        """
        if state is not None:
            self._reached = self._at_first = self._options.population * (state.number + 1)
            self._at_first += self._options.population
        if self._shown:
            self._spent = dict(self._evaluator.counters.seconds)
            self._candidates = self._evaluator.counters.candidates
            self._begun = self._last_line = time.monotonic()
            self._bar.start()
            self._watch.start()

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        if self._watch.is_alive():
            self._watch.join()
        self._bar.stop()

    # ------------------------------------------------------------------ by generation
    def __call__(self, state: Generation) -> None:
        """Show a generation (a callback of the loop)."""
        if not self._shown:
            return
        counters = self._evaluator.counters
        self._reached = self._options.population * (state.number + 1)
        self._candidates = counters.candidates
        if not self._at_first:
            self._at_first = self._reached
        values, volume = _best(state, self._evaluator)
        short = " ".join(values) + (f" hv {volume}" if volume else "")
        self._show(f"gen {state.number}/{self._options.generations} {short}")
        if self._logs:
            text = ", ".join(values) + (f"; hypervolume {volume}" if volume else "")
            counts = f"{counters.candidates} evaluated, {counters.cache_hits} cached"
            of = f"generation {state.number} of {self._options.generations}"
            self._line(f"{of}: best {text}; {counts}; {self._time_left()}")

    # ------------------------------------------------------------------ by candidate
    def _look(self) -> None:
        """Until the end: show new candidates, and the estimate after the first one."""
        while not self._ended.wait(LOOK):
            new = self._evaluator.counters.candidates - self._candidates
            if not self._estimated and new > 0:
                self._estimated = True
                step(self._estimate(new), shown=self._shown)
                self._last_line = time.monotonic()
            self._show()
            if self._logs and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
                self._line(f"candidate {self._done()} of {self._total}; {self._time_left()}")

    def _done(self) -> int:
        """Candidates that are done; a generation's duplicates and cached ones count at its end."""
        new = self._evaluator.counters.candidates - self._candidates
        return min(self._reached + new, self._reached + self._options.population, self._total)

    def _show(self, text: str | None = None) -> None:
        changes: dict[str, Any] = {} if text is None else {"description": text}
        self._bar.update(self._task, completed=self._done(), left=self._time_left(short=True), **changes)

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        log_line(text)

    def _time_left(self, *, short: bool = False) -> str:
        """Time since the start, and an estimate of the time until the last generation."""
        passed, done = time.monotonic() - self._begun, self._done()
        new = done - max(0, self._at_first - self._options.population)
        left = duration(passed / new * (self._total - done)) if new > 0 else ""
        if short:
            return f"{left} left" if left else ""
        return f"{duration(passed)}, about {left} left" if left else duration(passed)

    def _estimate(self, new: int) -> str:
        """The time of the whole run, from so many new candidates."""
        options, counters = self._options, self._evaluator.counters
        spent = {name: seconds - self._spent[name] for name, seconds in counters.seconds.items()}
        candidate = (sum(spent.values()) or time.monotonic() - self._begun) / new  # on workers the wall time counts
        left = self._total - self._reached
        parts, whole = [f"{left} candidates at {_seconds(candidate)}"], left * candidate
        if self._cost is not None and math.isfinite(self._cost.each):
            number = refinements(options)
            parts.append(f"up to {number} refinements at {_seconds(self._cost.each)}")
            whole += self._cost.first + number * self._cost.each
        if options.max_seconds is None:
            bound = "max_seconds= would bound it"
        else:
            bound, whole = f"max_seconds={options.max_seconds:g} bounds it", min(whole, options.max_seconds)
        return f"about {duration(whole)}: {', '.join(parts)}; {bound}"


def _best(state: Generation, evaluator: Evaluator) -> tuple[list[str], str]:
    """The values of the network that is best by the first objective, and the hypervolume if there is one."""
    best = max(state.archive, key=lambda individual: individual.fitness.wvalues)
    values = [f"{name} {value:.3f}" for name, value in zip(evaluator.names, best.fitness.values, strict=True)]
    volume = state.logbook[-1].get("hypervolume")
    return values, "" if volume is None else f"{volume:.4f}"


def refinements(options: SearchOptions) -> int:
    """Networks that the end of a search refines, about: half a population on the front, and the finalists."""
    criteria = len(options.criteria)
    if len(options.objectives) > 1:
        return options.population // 2 + options.finalists * criteria
    return 1 + (2 * options.finalists + criteria if options.finalists else 0)


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else duration(seconds)
