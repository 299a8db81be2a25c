"""What the options of a search mean for its loop: variation, ways to end early, workers."""

from __future__ import annotations

from collections.abc import Callable

import torch

from deap_prune.config import SearchConfig
from deap_prune.evolution.algorithms import Variation, Vary
from deap_prune.evolution.distributed import RayMap, ray_map
from deap_prune.evolution.generation import Generation
from deap_prune.evolution.stops import MaxEvaluations, MaxSeconds, Patience, Target
from deap_prune.fitness.evaluator import Evaluator


def ray_workers(address: str | None, evaluator: Evaluator) -> RayMap | None:
    """Workers on Ray, with the threads of this process: one a GPU, or one for so many cores."""
    if address is None:
        return None
    threads, gpus = torch.get_num_threads(), float(evaluator.device.type == "cuda")
    return ray_map(evaluator, address=address, threads=threads, cpus=threads, gpus=gpus)


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
    if options.stall is not None:
        several = len(evaluator.names) > 1
        found.append(Patience(options.stall, "hypervolume" if several else name, several or upwards))
    return found
