"""Selection of survivors and parents, for every stock DEAP loop."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from deap import tools
from deap.tools.emo import assignCrowdingDist

Survivors = Callable[[list[Any], int], list[Any]]


def selBlend(individuals: list[Any], k: int) -> list[Any]:
    """Select survivors if ``k`` is below the number of individuals, else parents: for every stock DEAP loop.

    Survivors (``eaMuPlusLambda``) are selected by NSGA-II with several objectives, by fitness with one. Individuals
    that repeat the fitness values of others are selected last. Parents (``eaSimple``, where selNSGA2 would select
    nothing) are drawn by binary tournament on rank and crowding distance.

    Args:
        individuals: Individuals with valid fitness.
        k: Number of individuals to select.
    """
    return _selected(individuals, k, _by_nsga2)


def selBlendNSGA3(individuals: list[Any], k: int) -> list[Any]:
    """``selBlend`` with survivors by NSGA-III (Deb and Jain 2014), for three or more objectives.

    There are at most ``k`` uniform reference points. It draws from ``numpy.random``, as DEAP does.

    Args:
        individuals: Individuals with valid fitness.
        k: Number of individuals to select.
    """
    return _selected(individuals, k, _by_nsga3)


def selBlendFirst(individuals: list[Any], k: int) -> list[Any]:
    """``selBlend`` by the first objective; the other objectives break ties.

    Args:
        individuals: Individuals with valid fitness.
        k: Number of individuals to select.
    """
    return _selected(individuals, k, tools.selBest)


def selBlendParents(individuals: list[Any], k: int) -> list[Any]:
    """Any number of parents, by binary tournament on rank and crowding distance.

    DEAP's ``selTournamentDCD`` needs a multiple of four, and crowding distances that were assigned before.

    Args:
        individuals: Individuals with valid fitness.
        k: Number of parents to draw.
    """
    return _parents(individuals, k, _by_nsga2)


def _selected(individuals: list[Any], k: int, survivors: Survivors) -> list[Any]:
    if not individuals or k < 1:
        return []
    if k >= len(individuals):
        return _parents(individuals, k, survivors)
    first = {ind.fitness.wvalues: i for i, ind in reversed(list(enumerate(individuals)))}
    distinct = [ind for i, ind in enumerate(individuals) if first[ind.fitness.wvalues] == i]
    repeated = [ind for i, ind in enumerate(individuals) if first[ind.fitness.wvalues] != i]
    if len(distinct) <= k:
        chosen = distinct + repeated[: k - len(distinct)]
        assignCrowdingDist(chosen)  # as selNSGA2 does, for a later selTournamentDCD
        return chosen
    return survivors(distinct, k)


def _parents(individuals: list[Any], k: int, survivors: Survivors) -> list[Any]:
    place = {id(ind): i for i, ind in enumerate(survivors(individuals, len(individuals)))}
    pairs = ([random.choice(individuals), random.choice(individuals)] for _ in range(k))
    return [min(pair, key=lambda ind: place[id(ind)]) for pair in pairs]


def _by_nsga2(individuals: list[Any], k: int) -> list[Any]:
    if len(individuals[0].fitness.wvalues) == 1:
        return tools.selBest(individuals, k)
    return tools.selNSGA2(individuals, k, nd="log")


def _by_nsga3(individuals: list[Any], k: int) -> list[Any]:
    objectives = len(individuals[0].fitness.wvalues)
    if objectives == 1:
        return tools.selBest(individuals, k)
    if k >= len(individuals):  # all survive; the tournament needs their order
        return [ind for front in tools.sortLogNondominated(individuals, k) for ind in front]
    divisions = 1
    while math.comb(divisions + objectives, objectives - 1) <= k:
        divisions += 1
    return tools.selNSGA3(individuals, k, tools.uniform_reference_points(objectives, divisions), nd="log")
