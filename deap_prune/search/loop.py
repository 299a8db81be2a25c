"""What the options of a search mean for its loop: operators, variation, ways to end early, workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from deap import base

from deap_prune.blending.baselines import AnyGenome
from deap_prune.config import SearchConfig
from deap_prune.evolution.generation import Callback, Generation
from deap_prune.evolution.loop import Loop, Variation, Vary
from deap_prune.evolution.operators import CROSSOVERS, MUTATIONS
from deap_prune.evolution.problem import BlendProblem
from deap_prune.evolution.stops import MaxEvaluations, MaxSeconds, Patience, Target
from deap_prune.evolution.toolbox import make_toolbox, mutation_probability
from deap_prune.evolution.workers import RayMap, ray_map
from deap_prune.fitness.evaluator import Evaluator
from deap_prune.search.finalists import NextGeneration, PreScreen


def ray_workers(address: str | None, evaluator: Evaluator) -> AbstractContextManager[RayMap | None]:
    """Workers on Ray with the threads of this process, one a GPU or one for so many cores; None without an address."""
    if address is None:
        return nullcontext()
    threads, gpus = torch.get_num_threads(), float(evaluator.device.type == "cuda")
    return ray_map(evaluator, address=address, threads=threads, cpus=threads, gpus=gpus)


def option_toolbox(genome: AnyGenome, evaluator: Evaluator, options: SearchConfig) -> base.Toolbox:
    """The toolbox with the options' operators; from here on the run's randomness is its seed's."""
    torch.manual_seed(options.seed)
    toolbox = make_toolbox(genome, evaluator, seed=options.seed)
    toolbox.register("mate", CROSSOVERS[options.mate], layout=genome.layout)
    step = {} if options.mutate == "mutBlendCandidates" else {"sigma": options.sigma}
    probability = mutation_probability(genome.layout, options.indpb)
    toolbox.register("mutate", MUTATIONS[options.mutate], layout=genome.layout, indpb=probability, **step)
    return toolbox


def variation(options: SearchConfig, vary: Vary | None = None) -> Variation:
    """How many children, and how they vary (``vary``: in another way than DEAP's ``varOr``)."""
    return Variation(
        options.children or options.population,
        options.cxpb,
        options.mutpb,
        options.budgets,
        options.generations_per_budget or 1,
        **({} if vary is None else {"vary": vary}),
    )


def stops(options: SearchConfig, evaluator: Evaluator) -> list[Callable[[Generation], bool]]:
    """What the options say about ending early."""
    name, upwards = evaluator.names[0], evaluator.weights[0] > 0
    found: list[Callable[[Generation], bool]] = []
    if options.max_seconds is not None:
        found.append(MaxSeconds(options.max_seconds))
    if options.max_evaluations is not None:
        found.append(MaxEvaluations(options.max_evaluations))
    if options.target is not None:
        found.append(Target(name, options.target, upwards))
    several = len(evaluator.names) > 1
    if options.stall is not None:
        found.append(Patience(options.stall, "hypervolume" if several else name, several or upwards))
    if options.patience is not None:
        found.append(Patience(options.patience, "guard", several or upwards))
    return found


def evolve(
    toolbox: base.Toolbox,
    problem: BlendProblem,
    evaluator: Evaluator,
    options: SearchConfig,
    callbacks: Sequence[Callback],
    state: Generation | None,
) -> Generation:
    """The last generation; from the first on, or from where the run stopped."""
    screen = None
    if options.prescreen > 1:
        screen = PreScreen(evaluator, problem, options.prescreen, propose=not options.budgets)
    loop = Loop(
        options.algorithm,
        toolbox,
        variation(options, screen),
        callbacks,
        stops(options, evaluator),
        options.reference,
        options.fresh_duplicates,
        begin=NextGeneration(evaluator, problem),
    )
    return loop.run(state or loop.start(options.population), options.generations)
