"""Evaluators without a network: quick to evaluate, hard enough to search. Importable by worker processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from deap import algorithms, base, tools

import deap_prune as dp
from deap_prune.evolution.fitness import Compute, Values
from deap_prune.fitness import Counters
from tests.helpers.pruning import prepared


class Table:
    """Random scores for a space."""

    def __init__(self, space: dp.PruningSpace) -> None:
        rng = np.random.default_rng(0)
        self.scores = {g.name: {c: rng.random(g.size) for c in "abc"} for g in space.groups}


class Fake:
    """A plain evaluator: it prefers many kept filters, and even numbers of them."""

    def __init__(self, space: dp.PruningSpace, objectives: int = 2) -> None:
        self.space = space
        self.settings: dict[str, Any] = {"recalibrate": None}
        self.names = ("quality", "flops", "params", "roughness")[:objectives]
        self.weights = (1.0, -1.0, -1.0, -1.0)[:objectives]
        self.dense = {"flops": space.flops, "params": space.params, "values": {}}
        self.calls = 0

    def __call__(self, masks: dp.Masks) -> tuple[float, ...]:
        self.calls += 1
        counts = self.space.kept_counts(masks)
        first = np.array([np.flatnonzero(k)[0] for k in masks.values()])
        quality = float(np.log1p(counts).sum() - 0.1 * (counts % 2).sum() - 0.03 * first.sum())
        costs = dp.flops(self.space, masks) / self.space.flops, dp.params(self.space, masks) / self.space.params
        return (quality, *costs, float(np.abs(np.diff(counts)).mean()))[: len(self.names)]


class CachedFake(Fake):
    """A fake with all that a ``Fitness`` has: cache, counters, costs and a surrogate."""

    compensates = False
    learns = False

    def __init__(self, space: dp.PruningSpace, objectives: int = 2) -> None:
        super().__init__(space, objectives)
        self.cache: dict[dp.Masks, Values] = {}
        self.counters = Counters()

    def many(self, masks: Iterable[dp.Masks], *, compute: Compute | None = None) -> list[Values]:
        masks = list(masks)
        missing = [m for m in dict.fromkeys(masks) if m not in self.cache]
        values = map(self.compute, missing) if compute is None else compute(missing)
        self.cache |= dict(zip(missing, values, strict=True))
        self.counters.candidates += len(missing)
        self.counters.cache_hits += len(masks) - len(missing)
        return [self.cache[m] for m in masks]

    def compute(self, masks: dp.Masks) -> Values:
        return self(masks)

    def costs(self, masks: dp.Masks) -> list[float]:
        return [dp.flops(self.space, masks) / self.space.flops]

    def surrogate(self, masks: dp.Masks) -> float:
        return -self(masks)[0]

    def output_distance(self, masks: dp.Masks) -> float:
        return self.surrogate(masks)

    def learned(self) -> None:
        return None


def fake_genome(space: dp.PruningSpace | None = None, **options: Any) -> dp.Genome:
    space = space or prepared("residual").space
    table = Table(space)
    return dp.Genome(space, table, dp.cluster(table), **options)


def fake_toolbox(objectives: int = 2, seed: int | None = 0, individual: Any = None, **options: Any) -> base.Toolbox:
    genome = fake_genome(**options)
    return dp.make_toolbox(genome, Fake(genome.space, objectives), seed=seed, individual=individual)


def mu_plus_lambda(toolbox: base.Toolbox, ngen: int = 3, **options: Any) -> tuple[list[Any], tools.Logbook]:
    """DEAP's own loop, eight individuals and eight children."""
    population = toolbox.population(n=8)
    return algorithms.eaMuPlusLambda(population, toolbox, 8, 8, 0.5, 0.4, ngen, verbose=False, **options)


def individuals_of(values: Iterable[tuple[float, ...]]) -> list[dp.operators.BlendIndividual]:
    """Individuals with these fitness values (maximised, minimised); their only gene is their number."""
    individuals = []
    for number, value in enumerate(values):
        fitness = dp.operators.fitness_class((1.0, -1.0)[: len(value)])()
        individuals.append(dp.operators.BlendIndividual([float(number)], fitness))
        individuals[-1].fitness.values = value
    return individuals
