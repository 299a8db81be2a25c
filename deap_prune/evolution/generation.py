"""The state of a run after a generation: population, archive of the non-dominated, logbook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from deap import base, tools

from deap_prune.errors import ConfigError
from deap_prune.evolution.fitness import fitness_values
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
        individual.fitness.values = fitness_values(values, len(individual.fitness.weights))
    return fresh


def check_population(population: Sequence[Any], toolbox: base.Toolbox, *aliases: str) -> None:
    """Check that a loop can work with a population and a toolbox.

    Args:
        population: The individuals.
        toolbox: The toolbox.
        *aliases: Aliases that it must have.

    Raises:
        ConfigError: If the population is empty, an individual has no fitness, or an alias is missing.
    """
    if not population:
        raise ConfigError("the population is empty; give at least one individual, better 16 or more")
    others = [type(ind).__name__ for ind in population if not hasattr(getattr(ind, "fitness", None), "weights")]
    if others:
        raise ConfigError(f"the population holds a {others[0]} without a fitness; give those of toolbox.population")
    if missing := [name for name in aliases if not hasattr(toolbox, name)]:
        raise ConfigError(f"the toolbox has no {', '.join(missing)}; register it, or use dp.make_toolbox")


def check_state(state: Generation, number: int) -> None:
    """Check that callbacks left a state that a run can go on from.

    Args:
        state: The state.
        number: Its generation's number before the callbacks.

    Raises:
        ConfigError: If its number, population, archive or logbook can't be used any more.
    """
    lists = all(isinstance(part, list) for part in (state.population, state.archive, state.logbook))
    whole = lists and state.number == number and state.population and state.logbook
    if whole and all(hasattr(ind, "fitness") and ind.fitness.valid for ind in state.population + state.archive):
        return
    raise ConfigError(
        "a callback changed the state so that the run can't go on: number, population, archive and logbook stay as "
        "they are (individuals with valid fitness); callbacks may add to the logbook's last record and set state.stop"
    )
