"""What is evolved: individuals that a genome decodes and an evaluator evaluates."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from deap import base

from deap_prune.blending.budget import Budget
from deap_prune.blending.layout import Layout
from deap_prune.errors import ConfigError
from deap_prune.evolution.fitness import Evaluate, Values, as_fitness
from deap_prune.evolution.front import ParetoFront, Solution
from deap_prune.evolution.individual import BlendIndividual, fitness_class
from deap_prune.evolution.worker_pickles import light_reduce
from deap_prune.structure.masks import Masks
from deap_prune.structure.space import PruningSpace

Genes = Sequence[float]


class Decoder(Protocol):
    """What the toolbox needs of a genome."""

    space: PruningSpace
    layout: Layout

    @property
    def budget(self) -> Budget: ...  # noqa: D102

    @property
    def criteria(self) -> tuple[str, ...]: ...  # noqa: D102
    def decode_many(self, individuals: Sequence[Genes]) -> list[Masks]: ...  # noqa: D102
    def single(self, criterion: str, *, share: float = 1.0) -> list[float]: ...  # noqa: D102


class BlendProblem:
    """Genome and evaluator together. DEAP's ``evaluate`` is its bound method.

    Args:
        genome: Decodes individuals to masks.
        evaluator: Evaluates masks.
        individual: Makes an individual of genes (a ``creator`` class, for example); a ``BlendIndividual`` by default.

    Attributes:
        fitness: The evaluator, with what a plain one lacks.

    Raises:
        ConfigError: If individuals are NumPy arrays, have no fitness, or one of other weights than the objectives.
    """

    def __init__(
        self, genome: Decoder, evaluator: Evaluate, individual: Callable[[Iterable[float]], Any] | None = None
    ) -> None:
        self.genome = genome
        self.evaluator, self.fitness = evaluator, as_fitness(evaluator)
        self.owner = os.getpid()
        self.individual = individual or partial(_individual, fitness_class(evaluator.weights))
        genes = genome.single(genome.criteria[0])
        try:
            first = self.individual(genes)
        except Exception as error:
            raise ConfigError(
                f"individual fails on a list of {len(genes)} genes: {type(error).__name__}: {error}; give a class "
                "derived from list, or a function of the genes"
            ) from error
        self._check(first)

    def _check(self, individual: Any) -> None:
        if isinstance(individual, np.ndarray):
            raise ConfigError(
                "individuals are NumPy arrays, whose slices are views: DEAP's cxTwoPoint would copy one child's genes "
                "over the other's, and its ParetoFront can't compare them; derive the class from list"
            )
        if not hasattr(individual, "fitness"):
            raise ConfigError(
                f"individuals of {type(individual).__name__} have no fitness; make their class with DEAP's creator "
                "(creator.create('Individual', list, fitness=...)), or leave 'individual' out"
            )
        weights, evaluator = tuple(individual.fitness.weights), self.evaluator
        if weights != evaluator.weights:
            raise ConfigError(
                f"the individuals' fitness has weights {weights}; the objectives {', '.join(evaluator.names)} need "
                f"{evaluator.weights}: +1 to maximise, -1 to minimise"
            )

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return light_reduce(self)

    def evaluate(self, individual: Genes) -> Values:
        """Fitness values of an individual, in the order of the objectives."""
        return self.evaluate_many([individual])[0]

    def evaluate_many(self, individuals: Sequence[Genes]) -> list[Values]:
        """Fitness values of several individuals, decoded together."""
        return self.fitness.many(self.genome.decode_many(individuals))

    def map(self, function: Callable[..., Any], *items: Iterable[Any]) -> list[Any]:
        """``map`` that evaluates whole populations at once: what stock DEAP loops call as ``toolbox.map``."""
        if problem_of(function) is self and len(items) == 1:
            return self.evaluate_many(list(items[0]))
        return list(map(function, *items))

    def front(self, population: Iterable[Any]) -> ParetoFront:
        """The Pareto front of evaluated individuals; those without valid fitness are left out.

        Raises:
            ConfigError: If their fitness has other values than the evaluator's objectives.
        """
        individuals = _listed(population)
        if not all(hasattr(individual, "fitness") for individual in individuals):
            raise ConfigError("the population holds no individuals with a fitness; give those of toolbox.population")
        evaluated = [ind for ind in individuals if ind.fitness.valid]
        masks, values = self.genome.decode_many(evaluated), [ind.fitness.values for ind in evaluated]
        return front_of(self.evaluator, self.genome.space, evaluated, masks, values)


def problem_of(evaluate: Callable[..., Any]) -> BlendProblem | None:
    """The problem whose ``evaluate`` a toolbox has; None for other functions, and if it is decorated or overridden."""
    method = getattr(evaluate, "func", evaluate)
    problem = getattr(method, "__self__", None)
    own = isinstance(problem, BlendProblem) and getattr(method, "__func__", None) is BlendProblem.evaluate
    return problem if own else None


def _listed(population: Any) -> list[Any]:
    return list(population) if isinstance(population, Iterable) and getattr(population, "ndim", True) else [population]


def front_of(
    evaluator: Evaluate,
    space: PruningSpace,
    individuals: Sequence[Genes],
    masks: Sequence[Masks],
    values: Sequence[Values],
) -> ParetoFront:
    """The front of individuals with the values that an evaluator gave to their masks.

    Raises:
        ConfigError: If an individual has another number of values than there are objectives.
    """
    names, solutions = evaluator.names, []
    for genes, kept, its_values in zip(individuals, masks, values, strict=True):
        if len(its_values) != len(names):
            raise ConfigError(f"an individual's fitness has {len(its_values)} values; a front needs {', '.join(names)}")
        counts = space.kept_counts(kept)
        plain = tuple(gene.item() if isinstance(gene, np.generic) else gene for gene in genes)
        named = dict(zip(names, its_values, strict=True))
        costs = int(space.flops_of(counts)), int(space.params_of(counts))
        latency = None if space.latency_of is None else float(space.latency_of(counts))
        solutions.append(Solution(named, kept, *costs, plain, latency))
    weights = dict(zip(names, evaluator.weights, strict=True))
    return ParetoFront.of(solutions, weights, evaluator.dense, evaluator.settings)


def _individual(fitness: type[base.Fitness], genes: Iterable[float]) -> BlendIndividual:
    return BlendIndividual(genes, fitness())
