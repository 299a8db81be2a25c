"""Functions of a run's state that say when to stop. All but MaxSeconds give the same answer in a resumed run."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from deap_prune.errors import ConfigError, did_you_mean
from deap_prune.evolution.generation import Generation

NOT_MEASURED = {"gen", "nevals"}


def _column(state: Generation, name: str) -> list[float]:
    """A column of the logbook; callbacks may add columns after the initial generation.

    Raises:
        ConfigError: If there is no such column after the first generation.
    """
    values = [float(record[name]) for record in state.logbook if name in record]
    if not values and len(state.logbook) > 1:
        columns = {column for record in state.logbook for column in record} - NOT_MEASURED
        raise ConfigError(f"the logbook has no column '{name}'; {did_you_mean(name, columns)}")
    return values


@dataclass(frozen=True)
class MaxSeconds:
    """Stop after some time.

    Attributes:
        seconds: Seconds since ``started``; in a resumed run they count anew.
        started: ``time.monotonic()`` at the begin; the creation of this object by default.
    """

    seconds: float
    started: float = field(default_factory=time.monotonic)

    def __call__(self, state: Generation) -> bool:
        """Whether to stop."""
        return time.monotonic() - self.started >= self.seconds


@dataclass(frozen=True)
class MaxEvaluations:
    """Stop after some number of evaluated individuals, including those answered from the cache.

    Attributes:
        evaluations: That number; the generation that reaches it is finished.
    """

    evaluations: int

    def __call__(self, state: Generation) -> bool:
        """Whether to stop."""
        return sum(record["nevals"] for record in state.logbook) >= self.evaluations


@dataclass(frozen=True)
class Target:
    """Stop when a column of the logbook reaches a value.

    Attributes:
        column: An objective, or ``"hypervolume"`` (of several objectives).
        value: The value to reach.
        maximise: Whether larger values are better.

    Raises:
        ConfigError: When called after the first generation, if the logbook has no such column.
    """

    column: str
    value: float
    maximise: bool = True

    def __call__(self, state: Generation) -> bool:
        """Whether to stop."""
        values = _column(state, self.column)
        return bool(values) and (values[-1] >= self.value if self.maximise else values[-1] <= self.value)


@dataclass(frozen=True)
class Patience:
    """Early stopping: when a column of the logbook has not improved for some generations.

    Attributes:
        generations: Number of generations without improvement.
        column: An objective, or ``"hypervolume"`` (of several objectives).
        maximise: Whether larger values are better.
        least: An improvement is larger than this.

    Raises:
        ConfigError: When called after the first generation, if the logbook has no such column.
    """

    generations: int
    column: str = "hypervolume"
    maximise: bool = True
    least: float = 0.0

    def __call__(self, state: Generation) -> bool:
        """Whether to stop."""
        values = [value * (1 if self.maximise else -1) for value in _column(state, self.column)]
        if len(values) <= self.generations:
            return False
        return max(values[-self.generations :]) <= max(values[: -self.generations]) + self.least
