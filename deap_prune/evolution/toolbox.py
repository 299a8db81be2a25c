"""A DEAP toolbox for a genome and an evaluator; every alias can be registered anew."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from deap import base

from deap_prune.blending.genome import Genome
from deap_prune.evolution.front import ParetoFront, Solution
from deap_prune.evolution.individual import BlendIndividual, fitness_class
from deap_prune.evolution.operators import cxBlendLayers, initBlend, mutBlend, selBlend
from deap_prune.structure.masks import Masks

Values = tuple[float, ...]


class Evaluate(Protocol):
    """What the toolbox needs of an evaluator."""

    @property
    def names(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def weights(self) -> Values: ...  # noqa: D102
    @property
    def settings(self) -> dict[str, Any]: ...  # noqa: D102
    @property
    def dense(self) -> dict[str, Any]: ...  # noqa: D102

    def __call__(self, masks: Masks) -> Values: ...  # noqa: D102


class BlendProblem:
    """Individuals judged: genome and evaluator together. DEAP's ``evaluate`` is its bound method.

    Args:
        genome: Decodes individuals to masks.
        evaluator: Judges masks.
    """

    def __init__(self, genome: Genome, evaluator: Evaluate) -> None:
        self.genome = genome
        self.evaluator = evaluator
        self._individual = partial(self._make, fitness_class(evaluator.weights))

    @staticmethod
    def _make(fitness: type[base.Fitness], genes: Iterable[float]) -> BlendIndividual:
        return BlendIndividual(genes, fitness())

    def evaluate(self, individual: Sequence[float]) -> Values:
        """Fitness values of an individual, in the order of the objectives."""
        return self.evaluator(self.genome.decode(individual))

    def individual(self, genes: Iterable[float]) -> BlendIndividual:
        """An individual of the given genes."""
        return self._individual(genes)

    def population(self, n: int) -> list[BlendIndividual]:
        """``n`` individuals: single criteria in the first half (without a budget over a range of widths), then random.

        Args:
            n: Size.
        """
        names = list(dict.fromkeys(c for g in self.genome.clusters.groups.values() for c in g.criteria))
        free = self.genome.max_flops is None
        shares = np.linspace(0.95, 0.25, n // 2) if free else np.ones(min(len(names), n // 2))
        pairs = zip(itertools.cycle(names), shares.tolist(), strict=False)
        seeds = [self.genome.single(name, share=share) for name, share in pairs]
        fresh = (initBlend(self.individual, self.genome.layout) for _ in range(n - len(seeds)))
        return [*map(self.individual, seeds), *fresh]

    def front(self, population: Iterable[Any]) -> ParetoFront:
        """The Pareto front of evaluated individuals; those without valid fitness are left out."""
        names = self.evaluator.names
        judged = [ind for ind in population if ind.fitness.valid]
        solutions = [self.solution(ind, dict(zip(names, ind.fitness.values, strict=True))) for ind in judged]
        weights = dict(zip(names, self.evaluator.weights, strict=True))
        return ParetoFront.of(solutions, weights, self.evaluator.dense, self.evaluator.settings)

    def solution(self, individual: Sequence[float], values: dict[str, float]) -> Solution:
        """An individual's solution, with its cost in whole numbers."""
        space, masks = self.genome.space, self.genome.decode(individual)
        counts = space.kept_counts(masks)
        return Solution(values, masks, int(space.flops_of(counts)), int(space.params_of(counts)), tuple(individual))


def make_toolbox(
    genome: Genome,
    evaluate: Evaluate,
    *,
    seed: int | None = 0,
    indpb: float = 0.1,
    sigma: float = 0.5,
) -> base.Toolbox:
    """A toolbox with ``individual, population, evaluate, mate, mutate, select, map, clone, front``.

    Stock ``deap.algorithms`` loops run on it unmodified.

    Args:
        genome: Decodes individuals to masks.
        evaluate: Judges masks.
        seed: Seeds ``random`` and ``numpy.random``, DEAP's sources of randomness, once; None leaves them alone.
        indpb: Probability that a gene is mutated.
        sigma: Mutation step.
    """
    if seed is not None:
        random.seed(seed)
        np.random.seed(seed % 2**32)
    problem = BlendProblem(genome, evaluate)
    toolbox = base.Toolbox()
    register: Callable[..., None] = toolbox.register
    register("individual", initBlend, problem.individual, genome.layout)
    register("population", problem.population)
    register("evaluate", problem.evaluate)
    register("mate", cxBlendLayers, layout=genome.layout)
    register("mutate", mutBlend, layout=genome.layout, indpb=indpb, sigma=sigma)
    register("select", selBlend)
    register("front", problem.front)
    return toolbox
