"""Steady-state evolution: a child is made and sent whenever a worker is free, so no worker waits for a generation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deap import algorithms, base, tools

from deap_prune.arguments import checked
from deap_prune.errors import ConfigError
from deap_prune.evolution.algorithms import aging, oldest_leave
from deap_prune.evolution.generation import Generation, check_population
from deap_prune.evolution.in_flight import InFlight, workers_of
from deap_prune.evolution.loop import Stop, Variation, register_algorithm
from deap_prune.evolution.returns import Returns
from deap_prune.evolution.steady_run import SteadyRun, Steps


def _survivors(state: Generation, toolbox: base.Toolbox, children: list[Any]) -> list[Any]:
    """With one objective the oldest leaves, with several the last by ``toolbox.select``."""
    if _has_one_objective(children[0]):
        return oldest_leave(state, toolbox, children)
    return list(toolbox.select(state.population + children, len(state.population)))


@register_algorithm(
    "steady_state",
    reference="Durillo et al., EMO 2009; with one objective Real et al. 2019, arXiv 1802.01548",
    survivors=_survivors,
    steady=True,
)
def steady_child(state: Generation, toolbox: base.Toolbox, variation: Variation) -> list[Any]:
    """Children whenever a worker is free: NSGA-II's replacement, or ageing evolution with one objective."""
    if not _has_one_objective(state.population[0]):
        return variation.offspring(state.population, toolbox)
    if variation.vary is not algorithms.varOr:
        raise ConfigError("steady_state with one objective is ageing evolution, which mutates; leave vary out")
    return aging(state, toolbox, variation)


def _has_one_objective(individual: Any) -> bool:
    return len(individual.fitness.weights) == 1


@checked
def steady_state(
    population: list[Any],
    toolbox: base.Toolbox,
    cxpb: float,
    mutpb: float,
    ngen: int,
    stats: tools.Statistics | None = None,
    halloffame: Any = None,
    verbose: bool = __debug__,
    *,
    journal: str | Path | None = None,
    stops: Sequence[Stop] = (),
) -> tuple[list[Any], tools.Logbook]:
    """Steady-state evolution in the shape of ``deap.algorithms.eaSimple``, for any DEAP toolbox.

    With several objectives a child comes from two parents (``cxpb``), is a mutant (``mutpb``) or a copy, as in
    ``algorithms.varOr``, and the last of population and child by ``toolbox.select`` leaves. With one worker that is
    ``algorithms.eaMuPlusLambda`` with one child a generation. With one objective it is ageing evolution (Real et al.
    2019, arXiv 1802.01548): the best of a random quarter is mutated, and the oldest leaves; ``cxpb`` and ``mutpb`` have
    no part in it.

    Candidates are evaluated on the workers of ``toolbox.map``, made by ``dp.distributed.ray_map`` or
    ``dp.distributed.executor_map``; with another map, one by one. Evaluations can't change the state of ``random`` and
    ``numpy.random``, so the run depends on its seed and on the order of returns alone.

    Args:
        population: The initial individuals; it holds the last population at the end.
        toolbox: Aliases clone, evaluate, map, mate, mutate, and select if there are several objectives.
        cxpb: Probability that a child comes from two parents.
        mutpb: Probability that it is a mutant; ``cxpb + mutpb`` is at most 1.
        ngen: Generations after the initial population: as many returns as there are individuals are one.
        stats: Statistics of the population, recorded for each generation.
        halloffame: Updated with the individuals evaluated in each generation.
        verbose: Print the logbook as it grows.
        journal: File of the order of returns. If it exists, it is replayed first, without evaluations: a run that was
            killed goes on, and a finished one is repeated bit for bit. Seed and population must be the same.
        stops: Called with the state before every child; True ends the run.

    Returns:
        The last population and the logbook.

    Raises:
        ConfigError: If the population is empty, or ``toolbox.map`` is that of a pool.
        RunError: If the journal belongs to another run, or workers keep dying.

    Examples:
        >>> toolbox = dp.make_toolbox(genome, evaluate, seed=0)
        >>> population = toolbox.population(n=4)
        >>> _, logbook = dp.algorithms.steady_state(population, toolbox, 0.5, 0.5, ngen=2, verbose=False)
        >>> [record["nevals"] for record in logbook]
        [4, 4, 4]
    """
    check_population(population, toolbox, "evaluate", "mutate")
    variation, logbook = Variation(1, cxpb, mutpb), tools.Logbook()
    logbook.header = ["gen", "nevals", *(stats.fields if stats else [])]

    def record(state: Generation, evaluated: list[Any]) -> None:
        if halloffame is not None:
            halloffame.update(evaluated)
        logbook.record(gen=state.number, nevals=len(evaluated), **(stats.compile(state.population) if stats else {}))

    def notify(state: Generation) -> None:
        if verbose:
            print(logbook.stream)

    steps = Steps(
        lambda state: steady_child(state, toolbox, variation)[0],
        lambda state, child: _survivors(state, toolbox, [child]),
        record,
        notify,
        stops,
    )
    state = Generation(0, list(population), logbook=logbook)
    SteadyRun(
        state,
        toolbox,
        steps,
        period=len(population),
        in_flight=InFlight(toolbox, workers_of(toolbox)),
        journal=None if journal is None else Returns(journal),
    ).run(ngen)
    population[:] = state.population
    return population, logbook
