"""A DEAP toolbox for a genome and an evaluator; every alias can be registered anew."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
from deap import base

from deap_prune.blending.balance import WidthCurves
from deap_prune.blending.genome import Genome
from deap_prune.blending.layout import Layout
from deap_prune.errors import ConfigError, DataError
from deap_prune.evolution.front import ParetoFront, Solution
from deap_prune.evolution.individual import BlendIndividual, fitness_class
from deap_prune.evolution.operators import cxBlendWidths, initBlend, mutBlend
from deap_prune.evolution.selection import selBlend
from deap_prune.evolution.shipping import shipped
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
    max_flops: float | tuple[float, float] | None

    @property
    def criteria(self) -> tuple[str, ...]: ...  # noqa: D102
    def decode_many(self, individuals: Sequence[Genes]) -> list[Masks]: ...  # noqa: D102
    def single(self, criterion: str, *, share: float = 1.0) -> list[float]: ...  # noqa: D102


SPREAD = 2.0  # of the logarithms of random weights; benchmarks/RESULTS.md has what was tried beside it


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

    def singles(self, n: int) -> list[Any]:
        """The single criteria, each once; where the budget is free, ``n`` in turn over a range of costs, or one each.

        Args:
            n: At most so many, but every criterion once.
        """
        names = self.genome.criteria
        if isinstance(self.genome.max_flops, (int, float)):
            return self._distinct(self.genome.single(name) for name in names)
        shares = np.linspace(*self._range, max(n, len(names))).tolist()
        return self._distinct(
            self.genome.single(name, share=share) for name, share in zip(itertools.cycle(names), shares, strict=False)
        )

    def population(self, n: int) -> list[Any]:
        """``n`` different individuals: single criteria in the first half (over a range of costs), then random ones.

        Where widths evolve, a quarter are single criteria with widths of their own: balanced where the fitness
        compensates (``genome.balanced``, by the evaluator's surrogate), else by one threshold over all groups
        (``genome.affine``). Where the fitness refines, half of those are balanced, and the random ones have widths that
        are balanced with random weights of the groups: which layers refinement makes up for is yet to be learned, and
        widths that are far from even teach most.

        Args:
            n: Size.
        """
        names, fixed = self.genome.criteria, isinstance(self.genome.max_flops, (int, float))
        shares = np.ones(min(len(names), n // 2)) if fixed else np.linspace(*self._range, n // 2)
        pairs = zip(itertools.cycle(names), shares.tolist(), strict=False)
        found = self._distinct(self.genome.single(name, share=share) for name, share in pairs)
        learns = self._learns
        balanced = self.balanced(n // 8 if learns else n // 4)
        ranked = self.ranked(n // 4 - len(balanced)) if learns or not balanced else []
        found = self._distinct([*found, *balanced, *ranked])
        seen, curves = {tuple(ind) for ind in found}, self._curves if learns else None
        while len(found) < n:
            for _ in range(10):  # a genome of few genes may have no more different ones
                fresh = self._random(curves)
                if tuple(fresh) not in seen:
                    break
            seen.add(tuple(fresh))
            found.append(fresh)
        return found

    @property
    def _learns(self) -> bool:
        """Whether the fitness refines, so that its surrogate has to learn which layers count."""
        learned = getattr(self.evaluator, "learned", None)
        return learned is not None and learned() is not None

    def _random(self, curves: WidthCurves | None) -> Any:
        """A random blend; its widths balanced with random weights of the groups, where there are curves."""
        genome, fresh = self.genome, initBlend(self.individual, self.genome.layout)
        if curves is None or not isinstance(genome, Genome):
            return fresh
        weights = np.exp(np.random.normal(0, SPREAD, len(genome.space.groups)))
        low, high = sorted(self._range)
        share = float(np.random.uniform(low, high))
        widths = genome.balanced(genome.criteria[0], curves.weighed(weights.tolist()), share=share)
        for place in genome.layout.of_kind("keep", "budget"):
            fresh[place] = widths[place]
        return fresh

    def balanced(self, n: int, error: Callable[[Masks], float] | None = None) -> list[Any]:
        """Single criteria with balanced widths (``genome.balanced``), over a range of costs where the budget is free.

        None where widths don't evolve, or where there is nothing to balance by.

        Args:
            n: How many.
            error: What is balanced; the evaluator's surrogate (if it compensates) if left out.
        """
        genome = self.genome
        if not n or not isinstance(genome, Genome):
            return []
        curves = self._curves if error is None else self._measured(error)
        if curves is None:
            return []
        return self._distinct(genome.balanced(name, curves, share=share) for name, share in self._costs(n))

    def ranked(self, n: int) -> list[Any]:
        """Single criteria with widths by one threshold over all groups (``genome.affine``), as :meth:`balanced`.

        None where widths don't evolve.

        Args:
            n: How many.
        """
        genome = self.genome
        if not isinstance(genome, Genome) or not genome.allocation.genes:
            return []
        same = [1.0] * len(genome.space.groups), [0.0] * len(genome.space.groups)
        return self._distinct(genome.affine(name, *same, share=share) for name, share in self._costs(n))

    def _costs(self, n: int) -> Iterator[tuple[str, float]]:
        """``n`` criteria in turn, each with a share of the FLOPs out of the range."""
        shares = np.linspace(*self._range, n)
        # A share s of every layer costs about s² of the FLOPs: what a layer reads and what it makes both shrink.
        flops = shares if self.genome.max_flops is not None else shares**2
        return zip(itertools.cycle(self.genome.criteria), flops.tolist(), strict=False)

    @cached_property
    def _curves(self) -> WidthCurves | None:
        """By the evaluator's surrogate, measured once."""
        error = getattr(self.evaluator, "surrogate", None)
        if error is None or self.evaluator.settings.get("compensate") is None:
            return None
        return self._measured(error)

    def _measured(self, error: Callable[[Masks], float]) -> WidthCurves | None:
        """For the criterion whose filters leave the smallest error; all criteria share them."""
        genome = self.genome
        if not isinstance(genome, Genome) or not genome.allocation.genes:
            return None
        try:
            best = min(genome.criteria, key=lambda name: error(genome.decode(genome.single(name, share=0.5))))
        except DataError:  # no calibration data: fine for objectives that are counted from masks alone
            return None
        return genome.width_curves(best, error)

    @property
    def _range(self) -> tuple[float, float]:
        """The largest and the smallest share that a population begins with where the budget is free."""
        budget = self.genome.max_flops
        return (budget[1], budget[0]) if isinstance(budget, tuple) else (0.95, 0.25)

    def _distinct(self, genes: Iterable[Genes]) -> list[Any]:
        return [self.individual(g) for g in dict.fromkeys(map(tuple, genes))]

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


def mutation_probability(layout: Layout, asked: float | None = None) -> float:
    """The probability that a gene mutates: as asked for; else a tenth, but no more than six genes on average."""
    return min(0.1, 6 / len(layout)) if asked is None else asked


def make_toolbox(
    genome: Decoder,
    evaluate: Evaluate,
    *,
    seed: int | None = 0,
    indpb: float | None = None,
    sigma: float = 0.5,
    individual: Callable[[Iterable[float]], Any] | None = None,
) -> base.Toolbox:
    """A toolbox with ``individual, population, evaluate, mate, mutate, select, map, clone, front, decode, singles``.

    Stock ``deap.algorithms`` loops run on it unmodified. Its ``map`` judges whole populations at once.
    ``individual_guess`` makes an individual of genes that are at hand (``genome.single("l2")``, say).

    Args:
        genome: Decodes individuals to masks.
        evaluate: Judges masks.
        seed: Seeds ``random`` and ``numpy.random``, DEAP's sources of randomness, once; None leaves them alone.
        indpb: Probability that a gene is mutated; a tenth, but no more than six genes on average, if left out.
        sigma: Mutation step.
        individual: Makes an individual of genes: your own ``creator`` class, a list with a fitness.

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
    toolbox = base.Toolbox()
    register: Callable[..., None] = toolbox.register
    register("individual", initBlend, problem.individual, genome.layout)
    register("individual_guess", problem.individual)  # the name of DEAP's tutorial on seeding a population
    register("population", problem.population)
    register("singles", problem.singles)
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
