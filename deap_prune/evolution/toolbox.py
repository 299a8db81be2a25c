"""A DEAP toolbox for a genome and an evaluator; every alias can be registered anew."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from deap import base

from deap_prune.arguments import Positive, Seed, Share, checked
from deap_prune.blending.layout import Layout
from deap_prune.evolution.first_population import StartingPoints
from deap_prune.evolution.fitness import Evaluate
from deap_prune.evolution.operators import cxBlendWidths, initBlend, mutBlend
from deap_prune.evolution.pool_map import SafeToolbox
from deap_prune.evolution.problem import BlendProblem, Decoder
from deap_prune.evolution.selection import selBlend


def mutation_probability(layout: Layout, indpb: float | None = None) -> float:
    """The probability that a gene mutates: ``indpb``, or by default a tenth, but at most six genes on average."""
    return min(0.1, 6 / len(layout)) if indpb is None else indpb


@checked
def make_toolbox(
    genome: Decoder,
    evaluate: Evaluate,
    *,
    seed: Seed | None = 0,
    indpb: Share | None = None,
    sigma: Positive = 0.5,
    individual: Callable[[Iterable[float]], Any] | None = None,
) -> base.Toolbox:
    """A toolbox with ``individual, population, evaluate, mate, mutate, select, map, clone, front, decode, singles``.

    Stock ``deap.algorithms`` loops run on it unmodified. Its ``map`` evaluates whole populations at once.
    ``individual_guess`` makes an individual of given genes (``genome.single("l2")``, for example).

    Args:
        genome: Decodes individuals to masks.
        evaluate: Evaluates masks.
        seed: Seeds ``random`` and ``numpy.random``, DEAP's sources of randomness, once; None leaves them alone.
        indpb: Probability that a gene is mutated; by default a tenth, but at most six genes on average.
        sigma: Mutation step.
        individual: Makes an individual of genes: your own ``creator`` class, for example, a list with a fitness.

    Examples:
        >>> import deap.algorithms
        >>> toolbox = dp.make_toolbox(genome, evaluate, seed=0)
        >>> population, _ = deap.algorithms.eaSimple(toolbox.population(n=4), toolbox, 0.5, 0.5, ngen=2, verbose=False)
        >>> len(population), all(s.flops <= 0.5 * space.flops for s in toolbox.front(population))
        (4, True)

    Raises:
        ConfigError: If your individuals are NumPy arrays, or their fitness has other weights than the objectives.
    """
    if seed is not None:
        random.seed(seed)
        np.random.seed(seed % 2**32)
    problem = BlendProblem(genome, evaluate, individual)
    starting_points = StartingPoints(problem)
    toolbox = SafeToolbox()
    register: Callable[..., None] = toolbox.register
    register("individual", initBlend, problem.individual, genome.layout)
    register("individual_guess", problem.individual)  # the name of DEAP's tutorial on seeding a population
    register("population", starting_points.population)
    register("singles", starting_points.singles)
    register("evaluate", problem.evaluate)
    register("map", problem.map)
    register("decode", genome.decode_many)
    register("mate", cxBlendWidths, layout=genome.layout)
    probability = mutation_probability(genome.layout, indpb)
    register("mutate", mutBlend, layout=genome.layout, indpb=probability, sigma=sigma)
    register("select", selBlend)
    register("front", problem.front)
    toolbox.layout = genome.layout
    return toolbox
