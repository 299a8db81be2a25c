"""The registered algorithms apart from (mu + lambda), and baselines with the same interface."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
from deap import algorithms, base, cma

from deap_prune.errors import ConfigError
from deap_prune.evolution.generation import Generation
from deap_prune.evolution.loop import Variation, register_algorithm
from deap_prune.evolution.operators import CONTINUOUS, clip
from deap_prune.evolution.selection import selBlendFirst, selBlendNSGA3, selBlendParents


# ------------------------------------------------------------------ several objectives
@register_algorithm("nsga2", reference="Deb et al. 2002, doi 10.1109/4235.996017")
def nsga2(state: Generation, toolbox: base.Toolbox, variation: Variation) -> list[Any]:
    """NSGA-II: parents by binary tournament on rank and crowding, crossover and then mutation."""
    parents = [toolbox.clone(ind) for ind in selBlendParents(state.population, variation.children)]
    return list(algorithms.varAnd(parents, toolbox, variation.cxpb, variation.mutpb))


def _by_directions(state: Generation, toolbox: base.Toolbox, children: list[Any]) -> list[Any]:
    return selBlendNSGA3(state.population + children, len(state.population))


@register_algorithm("nsga3", reference="Deb and Jain 2014, doi 10.1109/TEVC.2013.2281535", survivors=_by_directions)
def nsga3(state: Generation, toolbox: base.Toolbox, variation: Variation) -> list[Any]:
    """NSGA-III, for three or four objectives: random parents, survivors along reference directions."""
    parents = [toolbox.clone(random.choice(state.population)) for _ in range(variation.children)]
    return list(algorithms.varAnd(parents, toolbox, variation.cxpb, variation.mutpb))


# ------------------------------------------------------------------ one objective
def oldest_leave(state: Generation, toolbox: base.Toolbox, children: list[Any]) -> list[Any]:
    """The newest individuals, as many as the population has."""
    return [*state.population, *children][-len(state.population) :]


def aging(state: Generation, toolbox: base.Toolbox, variation: Variation) -> list[Any]:
    """Ageing evolution: the best of a random quarter is mutated, the oldest leave; with one child LeGR's loop."""
    return [_reborn(toolbox.mutate(child)[0]) for child in _tournaments(state, toolbox, variation)]


def _tournaments(state: Generation, toolbox: base.Toolbox, variation: Variation) -> list[Any]:
    """Copies of the winners of tournaments."""
    size = max(2, len(state.population) // 4)
    return [
        toolbox.clone(max(random.choices(state.population, k=size), key=lambda ind: ind.fitness))
        for _ in range(variation.children)
    ]


def _reborn(child: Any) -> Any:
    del child.fitness.values
    return child


def legr(state: Generation, toolbox: base.Toolbox, variation: Variation) -> list[Any]:
    """LeGR: ageing evolution that mutates scale and shift of a tenth of the layers.

    The published steps: a scale is multiplied by exp(N(0, 1 - i / 500)) after i evaluations (i at most 400), a shift
    moves by N(0, 1) standard deviations. A budget gene, which LeGR does not have, counts as a layer without a shift.
    """
    layout = toolbox.layout
    places = layout.of_kind("scale", "budget")
    step = 1 - min(sum(record["nevals"] for record in state.logbook), 400) / 500
    children = _tournaments(state, toolbox, variation)
    for child in children:
        for place in random.choices(places, k=max(1, round(len(places) / 10))):
            child[place] *= math.exp(random.gauss(0, step))
            if layout.kinds[place] == "scale":
                child[place + 1] += random.gauss(0, 1)
        clip(_reborn(child), layout)
    return children


LEGR = "Chin et al. 2020, arXiv 1904.12368"
register_algorithm("aging", reference=f"Real et al. 2019, arXiv 1802.01548; as LeGR: {LEGR}", survivors=oldest_leave)(
    aging
)
register_algorithm("legr", reference=LEGR, survivors=oldest_leave, genome="affine")(legr)


def _only_children(state: Generation, toolbox: base.Toolbox, children: list[Any]) -> list[Any]:
    return children


@register_algorithm("cma", reference="Hansen and Ostermeier 2001; DEAP's cma.Strategy", survivors=_only_children)
def cma_es(state: Generation, toolbox: base.Toolbox, variation: Variation) -> list[Any]:
    """CMA-ES on the continuous genes, by the first objective.

    It starts around the best individual of the initial population; candidate genes keep its values. Genes are clipped
    to their bounds before the distribution learns from them.
    """
    layout = toolbox.layout
    places = [i for i in layout.of_kind(*CONTINUOUS) if layout.high[i] > layout.low[i]]
    low, high = (np.array(bound)[places] for bound in (layout.low, layout.high))
    strategy = _strategy(state, places, low, high, variation.children)
    if state.number > 0:
        rows = sorted(state.population, key=lambda ind: ind.fitness, reverse=True)
        strategy.update([_Row(((np.array(ind)[places] - low) / (high - low)).tolist(), ind.fitness) for ind in rows])
    _remember(state, strategy)
    children = []
    for point in strategy.generate(lambda x: low + x * (high - low)):
        child = toolbox.clone(state.population[0])
        genes = dict(enumerate(state.memory["base"])) | dict(zip(places, point.tolist(), strict=True))
        for place, gene in genes.items():  # one by one: an array.array takes no list
            child[place] = gene
        clip(child, layout)
        del child.fitness.values
        children.append(child)
    return children


class _Row(list[float]):
    """The part of an individual that cma.Strategy.update reads."""

    def __init__(self, genes: list[float], fitness: base.Fitness) -> None:
        super().__init__(genes)
        self.fitness = fitness


ARRAYS = ("centroid", "pc", "ps", "C", "B", "diagD", "BD")


def _strategy(state: Generation, places: list[int], low: Any, high: Any, children: int) -> cma.Strategy:
    """The strategy in the state's memory; at first around the best individual, with a sigma of 0.3 of the ranges."""
    if children < 4:
        raise ConfigError(f"cma with {children} children a generation can't estimate a distribution; give 4 or more")
    if "cma" not in state.memory:
        best = max(state.population, key=lambda ind: ind.fitness)
        state.memory["base"] = [float(g) for g in best]
        return cma.Strategy(centroid=(np.array(best)[places] - low) / (high - low), sigma=0.3, lambda_=children)
    memory = state.memory["cma"]
    strategy = cma.Strategy(centroid=memory["centroid"], sigma=memory["sigma"], lambda_=children)
    strategy.update_count = memory["update_count"]
    for name in ARRAYS:
        setattr(strategy, name, np.array(memory[name]))
    return strategy


def _remember(state: Generation, strategy: cma.Strategy) -> None:
    memory = {name: getattr(strategy, name).tolist() for name in ARRAYS}
    state.memory["cma"] = {**memory, "sigma": float(strategy.sigma), "update_count": strategy.update_count}


# ------------------------------------------------------------------ several budgets in one run
def _moved(individual: Any, budget: float, toolbox: base.Toolbox) -> Any:
    """A copy with this budget; its fitness becomes invalid if the budget changes."""
    copied = toolbox.clone(individual)
    (place,) = toolbox.layout.of_kind("budget")
    if copied[place] != budget:
        copied[place] = budget
        del copied.fitness.values
    return copied


def _first_budget(toolbox: base.Toolbox, n: int, variation: Variation) -> list[Any]:
    if not variation.budgets or not toolbox.layout.of_kind("budget"):
        raise ConfigError(
            "successive needs budgets, such as (0.7, 0.5, 0.3), and a genome whose max_flops is their range"
        )
    return [_moved(ind, variation.budgets[0], toolbox) for ind in toolbox.population(n=n)]


def _at_this_budget(state: Generation, toolbox: base.Toolbox, children: list[Any]) -> list[Any]:
    (place,) = toolbox.layout.of_kind("budget")
    present = [ind for ind in state.population + children if ind[place] == children[0][place]]
    return selBlendFirst(present, len(state.population)) if len(present) > len(state.population) else present


@register_algorithm(
    "successive", reference="ours; one run for several budgets", first=_first_budget, survivors=_at_this_budget
)
def successive(state: Generation, toolbox: base.Toolbox, variation: Variation) -> list[Any]:
    """One budget after the other, by the first objective; each begins with the survivors of the previous one."""

    def budget(number: int) -> float:
        return variation.budgets[min(number // variation.generations_per_budget, len(variation.budgets) - 1)]

    now = budget(state.number + 1)
    if now != budget(state.number):
        return [_moved(ind, now, toolbox) for ind in state.population]
    return [_moved(child, now, toolbox) for child in variation.offspring(state.population, toolbox)]


# ------------------------------------------------------------------ baselines
@register_algorithm("random", reference="Li and Talwalkar 2019, arXiv 1902.07638")
def random_search(state: Generation, toolbox: base.Toolbox, variation: Variation) -> list[Any]:
    """Random search: all children are random individuals; the best survive."""
    return [toolbox.individual() for _ in range(variation.children)]


def _singles(toolbox: base.Toolbox, n: int, variation: Variation) -> list[Any]:
    return list(toolbox.singles(n=n))


@register_algorithm("singles", reference="the method's own baseline", first=_singles)
def single_criteria(state: Generation, toolbox: base.Toolbox, variation: Variation) -> list[Any]:
    """The single criteria alone, over a range of costs if the budget is free."""
    return []


@register_algorithm("borda", reference="de Borda 1781", first=_singles, genome="borda")
def mean_rank(state: Generation, toolbox: base.Toolbox, variation: Variation) -> list[Any]:
    """The mean rank of all criteria alone, over a range of costs if the budget is free."""
    return []
