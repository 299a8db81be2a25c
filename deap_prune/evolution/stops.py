"""When to stop: functions of a run's state. All but the clock give the same answer in a resumed run."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from deap_prune.errors import ConfigError, did_you_mean
from deap_prune.evolution.generation import Generation

NOT_MEASURED = {"gen", "nevals"}


def _column(state: Generation, name: str) -> list[float]:
    """A column of the logbook; callbacks may add one after the initial generation."""
    found = [float(record[name]) for record in state.logbook if name in record]
    if not found and len(state.logbook) > 1:
        columns = {column for record in state.logbook for column in record} - NOT_MEASURED
        raise ConfigError(f"the logbook has no column '{name}'; {did_you_mean(name, columns)}")
    return found


@dataclass(frozen=True)
class MaxSeconds:
    """Stop when the time is up, counted from the making of this record.

    Attributes:
        seconds: Of this process; a resumed run counts anew.
    """

    seconds: float
    started: float = field(default_factory=time.monotonic)

    def __call__(self, state: Generation) -> bool:
        """Whether to stop."""
        return time.monotonic() - self.started >= self.seconds


@dataclass(frozen=True)
class MaxEvaluations:
    """Stop when so many individuals were judged (also those that the cache answered).

    Attributes:
        evaluations: Upper bound; the generation that reaches it is finished.
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
        value: To be reached.
        maximise: From below (True) or from above.

    Raises:
        ConfigError: When called after the first generation, if the logbook has no such column.
    """

    column: str
    value: float
    maximise: bool = True

    def __call__(self, state: Generation) -> bool:
        """Whether to stop."""
        found = _column(state, self.column)
        return bool(found) and (found[-1] >= self.value if self.maximise else found[-1] <= self.value)


@dataclass(frozen=True)
class Patience:
    """Early stopping: when a column of the logbook has not improved for some generations.

    Attributes:
        generations: How many.
        column: An objective, or ``"hypervolume"`` (of several objectives).
        maximise: Larger is better.
        least: An improvement is more than this.

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
