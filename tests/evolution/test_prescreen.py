"""Pre-screening: which children a surrogate picks for evaluation, and which ones it proposes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import Digits
from deap import base

import deap_prune as dp
from deap_prune.algorithms import BlendProblem, Prescreen, StartingPoints
from deap_prune.evolution.prescreen import least_dominated
from tests.helpers.runs import labelled_search

DRAFTS: dict[str, Any] = {"compare": "drafts", "refine_images": 250}


# ------------------------------------------------------------------ the choice
def test_each_slot_takes_its_candidate_of_smallest_error(digits: Digits) -> None:
    """Slots share the candidates evenly, in order; nothing is evaluated."""
    evaluate = digits.evaluator(objectives=("loss",))
    masks = [dp.Masks.random(digits.space, keep=k, seed=s) for s, k in enumerate((0.3, 0.9, 0.5, 0.6, 0.2, 0.4))]
    errors = [evaluate.surrogate(m) for m in masks]
    pick = Prescreen(BlendProblem(digits.genome(), evaluate), 3).pick
    assert pick(masks, 2) == [1, 3] == [errors.index(min(errors[:3])), errors.index(min(errors[3:]))]
    assert pick(masks[:5], 2) == [errors.index(min(errors[:3])), errors.index(min(errors[3:5]))]
    assert evaluate.counters.samples == 0 and evaluate.counters.candidates == 0


def test_a_slot_with_one_candidate_takes_it(digits: Digits) -> None:
    evaluate = digits.evaluator(objectives=("loss", "flops"))
    masks = [dp.Masks.random(digits.space, keep=k) for k in (0.2, 0.9)]
    assert Prescreen(BlendProblem(digits.genome(), evaluate), 2).pick(masks, 2) == [0, 1]


def test_an_error_of_your_own_replaces_the_surrogate(digits: Digits) -> None:
    evaluate = digits.evaluator(objectives=("loss",))
    masks = [dp.Masks.random(digits.space, keep=k) for k in (0.2, 0.9, 0.5)]
    pick = Prescreen(BlendProblem(digits.genome(), evaluate), 3).pick
    assert pick(masks, 1, lambda m: dp.flops(digits.space, m)) == [0]
    assert pick(masks, 1, lambda m: -dp.flops(digits.space, m)) == [1]


def test_a_slot_takes_the_point_that_the_fewest_of_all_points_dominate() -> None:
    """Points are (error, cost); points of other slots count too."""
    good, dominated, cheap = (1.0, 1.0), (2.0, 2.0), (3.0, 0.5)
    assert least_dominated(np.array([dominated, cheap, good, good]), 2) == [1, 2]
    assert least_dominated(np.array([dominated, cheap]), 1) == [0]  # neither dominates: the smaller error
    assert least_dominated(np.array([dominated, good, cheap, good]), 1) == [1]  # of equals, the first
    assert least_dominated(np.array([dominated, good, cheap]), 3) == [0, 1, 2]


# ------------------------------------------------------------------ proposals
def prescreened(children: int, **options: Any) -> tuple[dp.Result, list[Any], list[Any]]:
    """A search's first population, prescreened children of it, and those children that the surrogate proposed."""
    result = labelled_search(generations=0, population=8, **options)
    evaluate, genome = result.compared_by, result.genome
    problem, toolbox = BlendProblem(genome, evaluate), dp.make_toolbox(genome, evaluate, seed=0)
    population = evaluated(toolbox, 8)
    brood = Prescreen(problem, 2)(population, toolbox, children, 0.5, 0.5)
    error = evaluate.learned()
    count = min(-(-children // 8), children - 1) * len(genome.criteria)
    proposals = StartingPoints(problem).balanced(count, error=error) if error is not None else []
    return result, brood, [ind for ind in brood if ind in proposals]


def evaluated(toolbox: base.Toolbox, n: int) -> list[Any]:
    population = toolbox.population(n=n)
    for individual in population:
        individual.fitness.values = toolbox.evaluate(individual)
    return population


@pytest.mark.parametrize(("children", "proposed"), [(1, 0), (2, 1), (8, 1), (9, 2), (16, 2)])
def test_one_child_in_eight_is_proposed_by_the_learned_surrogate(children: int, proposed: int) -> None:
    """The best single criteria by the learned error, none of them evaluated before."""
    result, brood, own = prescreened(children, objectives=("loss",), max_flops=0.6, **DRAFTS)
    evaluate, genome, learned = result.compared_by, result.genome, result.compared_by.learned()
    assert len(brood) == children and len(own) == proposed and learned is not None
    assert not any(genome.decode(ind) in evaluate.cache for ind in own)
    every = [genome.decode(ind) for ind in StartingPoints(BlendProblem(genome, evaluate)).balanced(4, error=learned)]
    new = sorted(learned(masks) for masks in set(every) if masks not in evaluate.cache)
    assert [learned(genome.decode(ind)) for ind in own] == new[:proposed]


def test_proposals_cover_a_range_of_costs_if_the_budget_is_free() -> None:
    result, _, own = prescreened(24, **DRAFTS)
    shares = [dp.flops(result.space, result.genome.decode(ind)) / result.space.flops for ind in own]
    assert len(own) == 3 and shares == sorted(shares, reverse=True) and shares[0] > 0.5 > 0.25 > shares[-1]


def test_nothing_is_proposed_if_candidates_are_only_compensated() -> None:
    result, brood, own = prescreened(8, objectives=("loss",), max_flops=0.6)
    assert result.compared_by.learned() is None and len(brood) == 8 and not own


# ------------------------------------------------------------------ duplicates
def sixteen_per_slot(n: int, **options: Any) -> tuple[Prescreen, list[Any], base.Toolbox, dp.Result]:
    """A pre-screen of sixteen children per slot, and ``n`` evaluated parents."""
    result = labelled_search(generations=0, population=8)
    evaluate, genome = result.compared_by, result.genome
    toolbox = dp.make_toolbox(genome, evaluate, seed=0, **options)
    return Prescreen(BlendProblem(genome, evaluate), 16), evaluated(toolbox, n), toolbox, result


def test_evaluated_networks_are_not_picked_again() -> None:
    """Most children of small steps decode to their parent's network; they are skipped while there are others."""
    vary, population, toolbox, result = sixteen_per_slot(4, indpb=0.02, sigma=0.05)
    masks = [result.genome.decode(child) for child in vary(population, toolbox, 8, 0.0, 1.0)]
    assert len(set(masks)) == len(masks) == 8 and not any(m in result.compared_by.cache for m in masks)


def test_copies_fill_the_slots_if_there_is_nothing_new() -> None:
    vary, population, toolbox, _ = sixteen_per_slot(4)
    copies = vary(population, toolbox, 6, 0.0, 0.0)  # parents, unchanged
    assert len(copies) == 6 and {tuple(c) for c in copies} <= {tuple(ind) for ind in population}
