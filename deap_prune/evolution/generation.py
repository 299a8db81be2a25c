"""Where a run stands: its population, the archive of the non-dominated, the logbook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from deap import base, tools

from deap_prune.evolution.front import hypervolume

Callback = Callable[["Generation"], None]


@dataclass
class Generation:
    """Where a run stands after a generation; all that the next one depends on, with the random generators.

    Attributes:
        number: 0 is the initial population, judged.
        population: Individuals with fitness.
        archive: Individuals whose fitness no other one dominated so far.
        logbook: One record a generation.
        stop: Set by a callback: the run ends after this generation.
        memory: What the algorithm carries on beside the population (CMA-ES: its distribution), as JSON takes it.
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
        """Take over the survivors, archive the newly judged, and write the record.

        Args:
            survivors: The population from now on.
            fresh: Individuals that were judged in this generation.
            toolbox: Aliases ``clone`` and ``front``.
            reference: Of the hypervolume; ``ParetoFront.reference`` if left out.
        """
        self.population = survivors
        self.archive = non_dominated([*self.archive, *map(toolbox.clone, fresh)])
        empty = toolbox.front([])
        weights = empty.weights
        record: dict[str, Any] = {"gen": self.number, "nevals": len(fresh)}
        if len(weights) > 1:
            points = -np.array([ind.fitness.wvalues for ind in self.archive])
            wanted = empty.reference if reference is None else reference
            volume = hypervolume(points, list(weights.values()), wanted)
            record |= {"hypervolume": volume, "front": len(points)}
        columns = np.array([ind.fitness.values for ind in survivors]).T
        for (name, weight), column in zip(weights.items(), columns, strict=True):
            record[name] = float(column.max() if weight > 0 else column.min())
        self.logbook.record(**record)


def non_dominated(individuals: Sequence[Any]) -> list[Any]:
    """Those that no other one dominates, one for each set of fitness values, first come first kept."""
    import moocore

    distinct = list({ind.fitness.wvalues: ind for ind in reversed(individuals)}.values())[::-1]
    if not distinct:
        return []
    points = np.array([ind.fitness.wvalues for ind in distinct], dtype=np.float64)
    return [ind for ind, kept in zip(distinct, moocore.is_nondominated(points, maximise=True), strict=True) if kept]


def judge(individuals: Sequence[Any], toolbox: base.Toolbox) -> list[Any]:
    """Evaluate, through ``toolbox.map``, those without valid fitness; they are returned."""
    fresh = list({id(ind): ind for ind in individuals if not ind.fitness.valid}.values())
    for individual, values in zip(fresh, toolbox.map(toolbox.evaluate, fresh), strict=True):
        individual.fitness.values = values
    return fresh
