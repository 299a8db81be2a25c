"""What is evolved: individuals that a genome decodes and an evaluator judges."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from deap import base

from deap_prune.blending.layout import Layout
from deap_prune.errors import ConfigError
from deap_prune.evolution.front import ParetoFront, Solution
from deap_prune.evolution.individual import BlendIndividual, fitness_class
from deap_prune.evolution.worker_pickles import shipped
from deap_prune.structure.masks import Masks
from deap_prune.structure.space import PruningSpace

Values = tuple[float, ...]
Genes = Sequence[float]


class Evaluate(Protocol):
    """What the toolbox needs of an evaluator; ``many``, if it has it, judges a whole population."""

    @property
    def names(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def weights(self) -> Values: ...  # noqa: D102
    @property
    def settings(self) -> dict[str, Any]: ...  # noqa: D102
    @property
    def dense(self) -> dict[str, Any]: ...  # noqa: D102

    def __call__(self, masks: Masks) -> Values: ...  # noqa: D102


class Decoder(Protocol):
    """What the toolbox needs of a genome."""

    space: PruningSpace
    layout: Layout

    @property
    def max_flops(self) -> float | tuple[float, float] | None: ...  # noqa: D102
    @property
    def criteria(self) -> tuple[str, ...]: ...  # noqa: D102
    def decode_many(self, individuals: Sequence[Genes]) -> list[Masks]: ...  # noqa: D102
    def single(self, criterion: str, *, share: float = 1.0) -> list[float]: ...  # noqa: D102


class BlendProblem:
    """Individuals judged: genome and evaluator together. DEAP's ``evaluate`` is its bound method.

    Args:
        genome: Decodes individuals to masks.
        evaluator: Judges masks.
        individual: Makes an individual of genes (a ``creator`` class, say); a ``BlendIndividual`` if left out.

    Raises:
        ConfigError: If individuals are NumPy arrays, have no fitness, or one of other weights than the objectives.
    """

    def __init__(
        self, genome: Decoder, evaluator: Evaluate, individual: Callable[[Iterable[float]], Any] | None = None
    ) -> None:
        self.genome = genome
        self.evaluator = evaluator
        self.owner = os.getpid()
        self.individual = individual or partial(_individual, fitness_class(evaluator.weights))
        one = self.individual(genome.single(genome.criteria[0]))
        if isinstance(one, np.ndarray):
            raise ConfigError(
                "individuals are NumPy arrays, whose slices are views: DEAP's cxTwoPoint would copy one child's genes "
                "over the other's, and its ParetoFront can't compare them; derive the class from list"
            )
        if not hasattr(one, "fitness"):
            raise ConfigError(
                f"individuals of {type(one).__name__} have no fitness; make their class with DEAP's creator "
                "(creator.create('Individual', list, fitness=...)), or leave 'individual' out"
            )
        weights = tuple(one.fitness.weights)
        if weights != evaluator.weights:
            raise ConfigError(
                f"the individuals' fitness has weights {weights}; the objectives {', '.join(evaluator.names)} need "
                f"{evaluator.weights}: +1 to maximise, -1 to minimise"
            )

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return shipped(self)

    def evaluate(self, individual: Genes) -> Values:
        """Fitness values of an individual, in the order of the objectives."""
        return self.evaluate_many([individual])[0]

    def evaluate_many(self, individuals: Sequence[Genes]) -> list[Values]:
        """Fitness values of several individuals: decoded together, judged by ``evaluator.many`` where there is one."""
        masks = self.genome.decode_many(individuals)
        many = getattr(self.evaluator, "many", None)
        return list(many(masks)) if many is not None else [self.evaluator(m) for m in masks]

    def map(self, function: Callable[..., Any], *items: Iterable[Any]) -> list[Any]:
        """``map`` that judges whole populations at once: what stock DEAP loops call as ``toolbox.map``."""
        own = type(self).evaluate is BlendProblem.evaluate  # a subclass may judge one by one
        if own and getattr(function, "func", function) == self.evaluate and len(items) == 1:
            return self.evaluate_many(list(items[0]))
        return list(map(function, *items))

    def front(self, population: Iterable[Any]) -> ParetoFront:
        """The Pareto front of evaluated individuals; those without valid fitness are left out.

        Raises:
            ConfigError: If their fitness has other values than the evaluator's objectives.
        """
        judged = [ind for ind in population if ind.fitness.valid]
        masks, values = self.genome.decode_many(judged), [ind.fitness.values for ind in judged]
        return front_of(self.evaluator, self.genome.space, judged, masks, values)


def front_of(
    evaluator: Evaluate,
    space: PruningSpace,
    individuals: Sequence[Genes],
    masks: Sequence[Masks],
    values: Sequence[Values],
) -> ParetoFront:
    """The front of individuals with the values that an evaluator gave their masks.

    Raises:
        ConfigError: If there are others than one value an objective.
    """
    names, solutions = evaluator.names, []
    for genes, kept, found in zip(individuals, masks, values, strict=True):
        if len(found) != len(names):
            raise ConfigError(f"an individual's fitness has {len(found)} values; a front needs {', '.join(names)}")
        counts = space.kept_counts(kept)
        plain = tuple(gene.item() if isinstance(gene, np.generic) else gene for gene in genes)
        named = dict(zip(names, found, strict=True))
        solutions.append(Solution(named, kept, int(space.flops_of(counts)), int(space.params_of(counts)), plain))
    weights = dict(zip(names, evaluator.weights, strict=True))
    return ParetoFront.of(solutions, weights, evaluator.dense, evaluator.settings)


def _individual(fitness: type[base.Fitness], genes: Iterable[float]) -> BlendIndividual:
    return BlendIndividual(genes, fitness())
