"""From the options of a search to its loop: operators, variation, stops, workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from deap import base

from deap_prune.blending.baselines import AnyGenome
from deap_prune.evolution.generation import Callback, Generation
from deap_prune.evolution.loop import Loop, Variation
from deap_prune.evolution.operators import CROSSOVERS, MUTATIONS
from deap_prune.evolution.prescreen import Prescreen
from deap_prune.evolution.problem import BlendProblem
from deap_prune.evolution.stops import MaxSeconds, Patience
from deap_prune.evolution.toolbox import make_toolbox, mutation_probability
from deap_prune.evolution.workers import RayMap, ray_map
from deap_prune.fitness.evaluator import Evaluator
from deap_prune.options import EvolutionOptions, SearchOptions


def ray_workers(address: str | None, evaluator: Evaluator) -> AbstractContextManager[RayMap | None]:
    """Ray workers with the threads of this process, one per GPU or per that many cores; None without an address."""
    if address is None:
        return nullcontext()
    threads, gpus = torch.get_num_threads(), float(evaluator.device.type == "cuda")
    return ray_map(evaluator, address=address, threads=threads, cpus=threads, gpus=gpus)


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
    shares = (options.children or options.population, options.cxpb, options.mutpb)
    if options.prescreen == 1:
        return Variation(*shares, budgets, equal_part)
    return Variation(*shares, budgets, equal_part, Prescreen(problem, options.prescreen, propose=not budgets))


def stops(options: EvolutionOptions, evaluator: Evaluator, *, guarded: bool) -> list[Callable[[Generation], bool]]:
    """The stops that the options name.

    Args:
        options: ``max_seconds`` and ``patience``.
        evaluator: Its objectives say what progress is.
        guarded: Whether progress is that on the guard images.
    """
    chosen: list[Callable[[Generation], bool]] = []
    if options.max_seconds is not None:
        chosen.append(MaxSeconds(options.max_seconds))
    if options.patience is not None:
        several = len(evaluator.names) > 1
        column = "guard" if guarded else "hypervolume" if several else evaluator.names[0]
        chosen.append(Patience(options.patience, column, several or evaluator.weights[0] > 0))
    return chosen


def evolve(
    toolbox: base.Toolbox,
    problem: BlendProblem,
    evaluator: Evaluator,
    options: SearchOptions,
    callbacks: Sequence[Callback],
    state: Generation | None,
) -> Generation:
    """The last state, from the first population on, or from the state where the run stopped."""
    loop = Loop(
        options.algorithm,
        toolbox,
        variation(options, problem),
        callbacks,
        stops(options, evaluator, guarded=bool(options.guard)),
    )
    return loop.run(state or loop.start(options.population), options.generations)
