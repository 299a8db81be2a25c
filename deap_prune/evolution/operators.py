"""Operators for blends: plain functions on lists, with DEAP's signatures and DEAP's source of randomness.

They need nothing but the :class:`~deap_prune.blending.genome.Layout`: usable in any ``toolbox.register``, on
individuals of any list class.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, MutableSequence
from typing import Any, TypeVar

from deap import tools

from deap_prune.blending.genome import Layout

Ind = TypeVar("Ind", bound=MutableSequence[float])


def initBlend(container: Callable[[Iterable[float]], Ind], layout: Layout) -> Ind:
    """A random individual.

    Candidates and factors are uniform. Keep genes scatter around a common share, so that a population covers the range
    of costs and each member is balanced enough to work.

    Args:
        container: Makes an individual of an iterable of genes.
        layout: Kinds and bounds of the genes.
    """
    common = random.uniform(0.15, 1.0)
    genes: list[float] = []
    for kind, low, high in zip(layout.kinds, layout.low, layout.high, strict=True):
        if kind == "candidate":
            genes.append(random.randint(int(low), int(high)))
        elif kind == "keep":
            genes.append(min(high, max(low, random.gauss(common, 0.1))))
        else:
            genes.append(random.uniform(low, high))
    return container(genes)


def cxBlendLayers(ind1: Ind, ind2: Ind, layout: Layout, indpb: float = 0.5) -> tuple[Ind, Ind]:
    """Uniform crossover by layer: all genes of a filter group change places together.

    Args:
        ind1: First parent, changed in place.
        ind2: Second parent, changed in place.
        layout: Kinds and bounds of the genes.
        indpb: Probability that a layer is exchanged.
    """
    for start, stop in layout.spans:
        if random.random() < indpb:
            for i in range(start, stop):
                ind1[i], ind2[i] = ind2[i], ind1[i]
    return ind1, ind2


def mutBlend(individual: Ind, layout: Layout, indpb: float = 0.1, sigma: float = 0.5) -> tuple[Ind]:
    """Mutate single genes, each by its kind; at least one is mutated.

    A candidate becomes another member of its cluster; a factor is multiplied by exp(N(0, sigma)), now and then drawn
    anew (a factor of 0 would stay 0); a keep or budget gene moves by N(0, sigma / 5). All stay in their bounds.

    Args:
        individual: Changed in place.
        layout: Kinds and bounds of the genes.
        indpb: Probability that a gene is mutated.
        sigma: Step.
    """
    chosen = [i for i in range(len(individual)) if random.random() < indpb] or [random.randrange(len(individual))]
    for i in chosen:
        low, high = layout.low[i], layout.high[i]
        if layout.kinds[i] == "candidate":
            others = [c for c in range(int(low), int(high) + 1) if c != individual[i]]
            individual[i] = random.choice(others) if others else individual[i]
            continue
        if layout.kinds[i] == "factor":
            fresh = individual[i] <= 0 or random.random() < 0.1
            value = random.uniform(low, high) if fresh else individual[i] * math.exp(random.gauss(0, sigma))
        else:
            value = individual[i] + random.gauss(0, sigma / 5)
        individual[i] = min(high, max(low, value))
    return (individual,)


def selBlend(individuals: list[Any], k: int) -> list[Any]:
    """Survivors if there are more individuals than places, else parents: works in every stock DEAP loop.

    With fewer places than individuals (``eaMuPlusLambda``) the best survive: by NSGA-II with several objectives, by
    fitness with one; individuals with the same fitness values go last. With as many places (``eaSimple``, where
    selNSGA2 would select nothing) parents are drawn by binary tournament, on rank and crowding distance.

    Args:
        individuals: With valid fitness.
        k: Places.
    """
    if k < len(individuals):
        first = {ind.fitness.wvalues: i for i, ind in reversed(list(enumerate(individuals)))}
        distinct = [ind for i, ind in enumerate(individuals) if first[ind.fitness.wvalues] == i]
        repeated = [ind for i, ind in enumerate(individuals) if first[ind.fitness.wvalues] != i]
        if len(distinct) <= k:
            return distinct + repeated[: k - len(distinct)]
        return _survivors(distinct, k)
    place = {id(ind): i for i, ind in enumerate(_survivors(individuals, len(individuals)))}
    pairs = ([random.choice(individuals), random.choice(individuals)] for _ in range(k))
    return [min(pair, key=lambda ind: place[id(ind)]) for pair in pairs]


def _survivors(individuals: list[Any], k: int) -> list[Any]:
    if len(individuals[0].fitness.wvalues) == 1:
        return tools.selBest(individuals, k)
    return tools.selNSGA2(individuals, k, nd="log")
