"""DEAP's traps, each with its guard: crowding distances, NaN, NumPy individuals, slow sorting, duplicates."""

from __future__ import annotations

import copy
import random
import warnings

import numpy as np
import pytest
from conftest import Digits
from deap import tools

import deap_prune as dp
from deap_prune.errors import ConfigError
from deap_prune.evolution.loop import _without_duplicates
from deap_prune.fitness import OBJECTIVES
from tests.helpers.fakes import Fake, fake_genome, fake_toolbox, individuals_of, mu_plus_lambda


def test_crowding_distance_survives_a_clone() -> None:
    """DEAP's own fitness loses it, and selTournamentDCD then fails."""
    individuals = individuals_of([(i / 8, i / 9) for i in range(8)])
    tools.emo.assignCrowdingDist(individuals)
    clones = [copy.deepcopy(ind) for ind in individuals]
    assert [ind.fitness.crowding_dist for ind in clones] == [ind.fitness.crowding_dist for ind in individuals]
    assert len(tools.selTournamentDCD(clones, 8)) == 8
    clones[0].fitness.values = (0.0, 1.0)
    assert individuals[0].fitness.values == (0.0, 0.0)


@pytest.mark.parametrize("size", [5, 6, 7, 9, 11])
def test_any_population_size(size: int) -> None:
    """selTournamentDCD needs multiples of four; ours does not."""
    toolbox = fake_toolbox()
    loop = dp.algorithms.Loop("nsga2", toolbox, dp.algorithms.Variation(size + 1))
    state = loop.run(loop.start(size), 2)
    assert len(state.population) == size
    assert len(dp.operators.selBlendParents(state.population, 2 * size + 1)) == 2 * size + 1


def test_nan_never_wins(digits: Digits) -> None:
    """DEAP lets a NaN replace the best in HallOfFame(1), and onto the ParetoFront: the evaluator never returns it."""
    dp.register_objective("often_nan", maximise=True, worst=-1.0)(
        lambda out, y, dense: out[:, 0] * (float("nan") if out.shape[0] else 1.0)
    )
    try:
        evaluate = digits.evaluator(objectives=("often_nan", "flops"))
        toolbox = dp.make_toolbox(digits.genome(), evaluate, seed=0)
        hall = tools.HallOfFame(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            population, _ = mu_plus_lambda(toolbox, ngen=1, halloffame=hall)
        assert {ind.fitness.values[0] for ind in population} == {-1.0} and hall[0].fitness.values[0] == -1.0
    finally:
        OBJECTIVES.remove("often_nan")


def test_genes_of_any_operator_are_evaluated() -> None:
    """mutGaussian leaves the bounds, cxBlend makes fractions of candidates: both are decoded, and never complex."""
    toolbox = fake_toolbox()
    toolbox.register("mate", tools.cxBlend, alpha=2.0)
    toolbox.register("mutate", tools.mutGaussian, mu=0, sigma=9, indpb=0.8)
    population, _ = mu_plus_lambda(toolbox)
    assert len(toolbox.front(population)) >= 1
    layout = toolbox.layout
    toolbox.register("mutate", tools.mutPolynomialBounded, eta=20.0, low=layout.low, up=layout.high, indpb=0.8)
    toolbox.decorate("mutate", dp.operators.bounded(layout))
    toolbox.decorate("mate", dp.operators.bounded(layout))
    population, _ = mu_plus_lambda(toolbox)
    assert all(lo <= g <= hi for ind in population for g, lo, hi in zip(ind, layout.low, layout.high, strict=True))


def test_two_point_crossover_changes_both_children() -> None:
    """On NumPy individuals it changes one; ours are lists, and arrays are refused."""
    toolbox = fake_toolbox()
    one, two = toolbox.population(n=2)
    before = list(one), list(two)
    random.seed(1)
    tools.cxTwoPoint(one, two)
    assert list(one) != before[0] and list(two) != before[1]
    assert sorted([*one, *two]) == sorted([*before[0], *before[1]])

    class Vector(np.ndarray):
        fitness = one.fitness

    with pytest.raises(ConfigError, match=r"individuals are NumPy arrays, .* derive the class from list"):
        fake_toolbox(individual=lambda genes: np.array(list(genes)).view(Vector))
    with pytest.raises(ConfigError, match=r"individuals of list have no fitness; make their class with DEAP's creator"):
        fake_toolbox(individual=list)


def test_selection_sorts_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """DEAP's default, nd="standard", takes seconds for a population of 1,000: we never call it."""
    monkeypatch.setattr(tools.emo, "sortNondominated", lambda *args, **options: pytest.fail("the slow sort"))
    for objectives in (2, 3):
        population, _ = mu_plus_lambda(fake_toolbox(objectives))
        assert len(dp.operators.selBlend(population, 4)) == len(dp.operators.selBlendNSGA3(population, 4)) == 4
        assert len(dp.operators.selBlendParents(population, 9)) == 9


def test_a_seeded_population_has_distinct_members() -> None:
    """Even if several criteria give one individual, the medoid of their cluster (NNCF's LeGR drew one 63 times)."""
    for options in ({"max_flops": 0.5, "candidates": "medoid", "objectives": 1}, {}, {"max_flops": (0.3, 0.8)}):
        toolbox = fake_toolbox(**{"objectives": 2, **options})
        population = toolbox.population(n=40)
        assert len(population) == 40 and len({tuple(ind) for ind in population}) == 40
        assert len({tuple(ind) for ind in toolbox.singles(n=12)}) == len(toolbox.singles(n=12))


def test_a_genome_of_few_genes_still_fills_its_population() -> None:
    genome = fake_genome(allocation="uniform", max_flops=0.5)
    few = dp.operators.Layout(("candidate",), (0.0,), (1.0,), (0,))
    genome.layout = few
    assert len(dp.make_toolbox(genome, Fake(genome.space, 1)).population(n=9)) == 9


def test_duplicates_cost_nothing(digits: Digits) -> None:
    """eaSimple re-evaluates duplicates. The cache's keys are masks, so other genes of a network cost nothing."""
    evaluate = digits.evaluator()
    genome = digits.genome()
    toolbox = dp.make_toolbox(genome, evaluate, seed=0)
    one = toolbox.individual()
    factors = genome.layout.of_kind("factor")
    same = toolbox.clone(one)
    for i in factors:
        same[i] /= 2  # factors count only up to scale
    assert list(same) != list(one) and genome.decode(same) == genome.decode(one)
    assert toolbox.map(toolbox.evaluate, [one, same, one]) == [toolbox.evaluate(one)] * 3
    assert evaluate.counters.candidates == 1


def test_duplicates_are_replaced_if_asked_for() -> None:
    def last_generation(fresh: bool) -> tuple[int, int]:
        toolbox = fake_toolbox()
        toolbox.register("mutate", lambda ind: (ind,))  # every child is its parent
        loop = dp.algorithms.Loop(
            "mu_plus_lambda", toolbox, dp.algorithms.Variation(8, 0.0, 1.0), fresh_duplicates=fresh
        )
        state = loop.start(8)
        loop.run(state, 3)
        return state.logbook[-1]["nevals"], len({tuple(ind) for ind in state.population})

    assert last_generation(True)[1] == 8
    toolbox = fake_toolbox()
    seen = toolbox.population(n=6)
    renewed = _without_duplicates([toolbox.clone(seen[0]), seen[1], toolbox.individual()], seen, toolbox)
    masks = toolbox.decode([*seen, *renewed])
    assert len(set(masks)) == 9 and not any(ind.fitness.valid for ind in renewed)


def test_register_keeps_the_evaluator_small(digits: Digits) -> None:
    """``toolbox.register`` copies a callable's __dict__ into the partial: a bound method has none."""
    toolbox = dp.make_toolbox(digits.genome(), digits.evaluator(), seed=0)
    assert vars(toolbox.evaluate) == {"__name__": "evaluate", "__doc__": toolbox.evaluate.func.__doc__}


def test_constrained_fitness_is_not_needed() -> None:
    """DEAP's ConstrainedFitness is unhashable and forgets its violation on clone: the decoder keeps budgets instead."""
    toolbox = fake_toolbox(max_flops=0.4, objectives=1)
    toolbox.register("mutate", tools.mutGaussian, mu=0, sigma=9, indpb=1.0)
    population, _ = mu_plus_lambda(toolbox)
    space = toolbox.evaluate.func.__self__.genome.space
    assert all(dp.flops(space, m) <= 0.4 * space.flops for m in toolbox.decode(population))
    assert len({ind.fitness for ind in population}) >= 1
