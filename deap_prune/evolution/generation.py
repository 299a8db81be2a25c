"""The state of a run after a generation: population, archive of the non-dominated, logbook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from deap import base, tools

from deap_prune.evolution.front import hypervolume
from deap_prune.evolution.pool_map import safe_map

Callback = Callable[["Generation"], None]


@dataclass
class Generation:
    """The state of a run after a generation. With the random generators, the next one depends on nothing else.

    Attributes:
        number: 0 is the evaluated initial population.
        population: Individuals with fitness.
        archive: All individuals so far whose fitness no other individual dominates.
        logbook: One record per generation.
        stop: A callback sets it to end the run after this generation.
        memory: Further state of the algorithm (for CMA-ES its distribution), JSON-serialisable.
    """

    number: int
    population: list[Any]
    archive: list[Any] = field(default_factory=list)
    logbook: tools.Logbook = field(default_factory=tools.Logbook)
    stop: bool = False
    memory: dict[str, Any] = field(default_factory=dict)

    def advance(
        self,
        survivors: list[Any],
        fresh: Sequence[Any],
        toolbox: base.Toolbox,
        reference: Sequence[float] | None = None,
    ) -> None:
        """Set the population, add the newly evaluated to the archive, and write the record.

        Args:
            survivors: The new population.
            fresh: Individuals that were evaluated in this generation.
            toolbox: Aliases ``clone`` and ``front``.
            reference: Reference point of the hypervolume; ``ParetoFront.reference`` by default.
        """
        self.population = survivors
        self.archive = non_dominated([*self.archive, *map(toolbox.clone, fresh)])
        empty = toolbox.front([])
        weights = empty.weights
        record: dict[str, Any] = {"gen": self.number, "nevals": len(fresh)}
        if len(weights) > 1:
            points = -np.array([ind.fitness.wvalues for ind in self.archive])
            point = empty.reference if reference is None else reference
            volume = hypervolume(points, list(weights.values()), point)
            record |= {"hypervolume": volume, "front": len(points)}
        columns = np.array([ind.fitness.values for ind in survivors]).T
        for (name, weight), column in zip(weights.items(), columns, strict=True):
            record[name] = float(column.max() if weight > 0 else column.min())
        self.logbook.record(**record)


def non_dominated(individuals: Sequence[Any]) -> list[Any]:
    """The individuals that no other one dominates, the first of those with equal fitness values."""
    import moocore

    distinct = list({ind.fitness.wvalues: ind for ind in reversed(individuals)}.values())[::-1]
    if not distinct:
        return []
    points = np.array([ind.fitness.wvalues for ind in distinct], dtype=np.float64)
    best = moocore.is_nondominated(points, maximise=True)
    return [ind for ind, is_best in zip(distinct, best, strict=True) if is_best]


def evaluate_invalid(individuals: Sequence[Any], toolbox: base.Toolbox) -> list[Any]:
    """Evaluate the individuals without valid fitness through ``toolbox.map``, and return them."""
    fresh = list({id(ind): ind for ind in individuals if not ind.fitness.valid}.values())
    for individual, values in zip(fresh, safe_map(toolbox.map)(toolbox.evaluate, fresh), strict=True):
        individual.fitness.values = values
    return fresh
