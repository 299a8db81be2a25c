"""From the options of a search to its loop: operators, variation, stops, workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from deap import base

from deap_prune.blending.baselines import AnyGenome
from deap_prune.errors import ConfigError, did_you_mean
from deap_prune.evolution.generation import Callback, Generation
from deap_prune.evolution.in_flight import MapOnWorkers
from deap_prune.evolution.loop import Loop, Variation
from deap_prune.evolution.operators import CROSSOVERS, MUTATIONS
from deap_prune.evolution.prescreen import Prescreen
from deap_prune.evolution.problem import BlendProblem
from deap_prune.evolution.returns import Returns
from deap_prune.evolution.stops import Patience
from deap_prune.evolution.toolbox import make_toolbox, mutation_probability
from deap_prune.evolution.workers import RayMap, ray_map
from deap_prune.fitness.evaluator import Evaluator
from deap_prune.options import EvolutionOptions, SearchOptions
from deap_prune.search.time_limit import TimeLimit

WORKER_OPTIONS: dict[str, type[int] | type[float]] = {
    "workers": int,
    "num_cpus": float,
    "num_gpus": float,
    "batch": int,
}


def ray_workers(ray: str | None, evaluator: Evaluator) -> AbstractContextManager[RayMap | None]:
    """Ray workers with the threads of this process, one per GPU or per that many cores; None without an address.

    Args:
        ray: The address, perhaps with options of ``ray_map`` after it: ``"auto,workers=64,num_gpus=0.25"``.
        evaluator: What the workers hold.

    Raises:
        ConfigError: If an option is unknown or not legal.
    """
    if ray is None:
        return nullcontext()
    if not isinstance(ray, str):
        raise ConfigError(f"ray is {ray!r}; give 'local' or the address of a cluster")
    address, *given = ray.split(",")
    threads, gpus = torch.get_num_threads(), float(evaluator.device.type == "cuda")
    how: dict[str, Any] = {"num_cpus": threads, "num_gpus": gpus} | dict(_worker_option(text) for text in given)
    return ray_map(evaluator, address=address, threads=threads, **how)


def _worker_option(text: str) -> tuple[str, float]:
    name, _, value = (part.strip() for part in text.partition("="))
    if name not in WORKER_OPTIONS:
        raise ConfigError(f"unknown option '{name}' of Ray workers; {did_you_mean(name, WORKER_OPTIONS)}")
    try:
        return name, WORKER_OPTIONS[name](value)
    except ValueError:
        raise ConfigError(f"ray has {name}='{value}'; give a number, such as 'auto,workers=64,num_gpus=0.25'") from None


def seeded_toolbox(genome: AnyGenome, evaluator: Evaluator, options: EvolutionOptions) -> base.Toolbox:
    """The toolbox with the options' operators; it seeds all global generators."""
    torch.manual_seed(options.seed)
    toolbox = make_toolbox(genome, evaluator, seed=options.seed)
    toolbox.register("mate", CROSSOVERS[options.mate], layout=genome.layout)
    step = {} if options.mutate == "mutBlendCandidates" else {"sigma": options.sigma}
    probability = mutation_probability(genome.layout, options.indpb)
    toolbox.register("mutate", MUTATIONS[options.mutate], layout=genome.layout, indpb=probability, **step)
    return toolbox


def variation(options: SearchOptions, problem: BlendProblem) -> Variation:
    """Number of children, and how they are varied."""
    budgets = options.budgets
    equal_part = -(-(options.generations + 1) // len(budgets)) if budgets else 1
    shares = (options.population, options.cxpb, options.mutpb)
    if options.prescreen == 1:
        return Variation(*shares, budgets, equal_part)
    return Variation(*shares, budgets, equal_part, Prescreen(problem, options.prescreen, propose=not budgets))


def stops(
    options: SearchOptions, evaluator: Evaluator, *, limit: TimeLimit | None = None
) -> list[Callable[[Generation], bool]]:
    """The stops that the options name.

    Args:
        options: ``patience``.
        evaluator: Its objectives say what progress is, if there are no guard images.
        limit: The time limit.
    """
    chosen: list[Callable[[Generation], bool]] = [] if limit is None else [limit]
    if options.patience is not None:
        several = len(evaluator.names) > 1
        column = "guard" if options.guard else "hypervolume" if several else evaluator.names[0]
        chosen.append(Patience(options.patience, column, several or evaluator.weights[0] > 0))
    return chosen


def evolve(
    toolbox: base.Toolbox,
    problem: BlendProblem,
    evaluator: Evaluator,
    options: SearchOptions,
    callbacks: Sequence[Callback],
    state: Generation | None,
    *,
    limit: TimeLimit | None = None,
    journal: Returns | None = None,
) -> Generation:
    """The last state, from the first population on, or from the state where the run stopped.

    Args:
        toolbox: The operators.
        problem: Genome and fitness.
        evaluator: The fitness.
        options: The options of the search.
        callbacks: Called with the state after every generation.
        state: State to continue from; None: begin.
        limit: The time limit.
        journal: The journal of returns of a steady-state algorithm.
    """
    on_workers = isinstance(getattr(toolbox.map, "func", toolbox.map), MapOnWorkers)  # they evaluate it at once
    loop = Loop(
        options.algorithm,
        toolbox,
        variation(options, problem),
        callbacks,
        stops(options, evaluator, limit=limit),
        journal=journal,
        cut=None if limit is None or on_workers else limit.cuts,
    )
    return loop.run(state or loop.start(options.population), options.generations)
