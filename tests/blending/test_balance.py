"""Balanced widths: the least error at a price of FLOPs, at every budget, and where a search begins with them."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable

import numpy as np
import pytest
from conftest import Digits
from hypothesis import given, settings
from hypothesis import strategies as st
from test_genome import SPACES, make

import deap_prune as dp
from deap_prune.blending.allocation import ALLOCATIONS
from deap_prune.blending.balance import WidthCurves
from deap_prune.blending.baselines import AffineGenome, Table, borda
from deap_prune.blending.budget import Budget
from deap_prune.blending.decoding import Planner
from deap_prune.errors import ConfigError
from deap_prune.evolution import StartingPoints
from tests.helpers.pruning import prepared


def losses(space: dp.PruningSpace, worth: np.ndarray, power: float = 2.0) -> Callable[[dp.Masks], float]:
    """Each group loses its worth times a power of the share that is gone."""

    def error(masks: dp.Masks) -> float:
        gone = np.array([1 - float(np.mean(np.asarray(masks[g.name]))) for g in space.groups])
        return float(worth @ gone**power)

    return error


LEVELS = np.arange(16, 1, -1) / 16


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("power", [2.0, 0.5])  # convex curves, and concave ones, which are jumped over
def test_no_other_widths_are_better_at_a_price(digits: Digits, seed: int, power: float) -> None:
    space, genome = digits.space, digits.genome()
    worth = np.random.default_rng(seed).uniform(0.5, 2.0, len(space.groups))
    curves = genome.width_curves("l2", losses(space, worth, power))
    flops = np.zeros((len(space.groups), 15))  # of each group at each width, all others dense
    for group, size in enumerate(space.sizes.tolist()):
        for place, level in enumerate(LEVELS.tolist()):
            counts = space.sizes.copy()
            counts[group] = level * size
            flops[group, place] = float(space.flops_of(counts)) / space.flops
    rows = {tuple(row) for row in curves.kept[:-1].round(6).tolist()}
    for price in np.geomspace(0.1, 1000, 50):
        best = (worth[:, None] * (1 - LEVELS) ** power + price * flops).argmin(axis=1)
        assert tuple(LEVELS[best].round(6).tolist()) in rows


@pytest.mark.parametrize("name", SPACES)
@given(data=st.data())
@settings(max_examples=15)
def test_budgets_are_met_and_wider_ones_are_wider(name: str, data: st.DataObject) -> None:
    space, genome = prepared(name).space, make(name)
    worth = np.array(data.draw(st.lists(st.floats(0, 10), min_size=len(space.groups), max_size=len(space.groups))))
    curves = genome.width_curves("b", losses(space, worth))
    assert (np.diff(curves.flops) <= 0).all() and (np.diff(curves.kept, axis=0) <= 0).all()
    few, many = sorted(data.draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    assert (np.array(curves.shares(few)) <= np.array(curves.shares(many)) + 1e-9).all()
    assert curves.shares(1.0) == [1.0] * len(space.groups)
    budget = data.draw(st.floats(max(genome.min_flops, 0.05), 1))
    fixed = make(name, max_flops=budget)
    for criterion in fixed.criteria:
        masks = fixed.decode(fixed.balanced(criterion, curves))
        assert dp.flops(space, masks) <= budget * space.flops


def test_weights_are_of_errors(digits: Digits) -> None:
    """Weighed curves are those of an error in which the groups count as much."""
    space, genome = digits.space, digits.genome()
    worth, weights = np.random.default_rng(0).uniform(0.5, 2.0, (2, len(space.groups)))
    weighed = genome.width_curves("l2", losses(space, worth)).weighed(weights.tolist())
    direct = genome.width_curves("l2", losses(space, worth * weights))
    assert np.allclose(weighed.kept, direct.kept) and np.allclose(weighed.flops, direct.flops)


def test_anchors_make_the_errors_of_groups_comparable(digits: Digits) -> None:
    """Anchored curves are those of the anchor if that differs by a factor for each group; unusable anchors are 1."""
    space, genome = digits.space, digits.genome()
    worth, factors = np.random.default_rng(0).uniform(0.5, 2.0, (2, len(space.groups)))
    error, dear = losses(space, worth), losses(space, worth * factors)
    anchored = genome.width_curves("l2", error, anchor=dear)
    direct = genome.width_curves("l2", dear)
    assert np.allclose(anchored.kept, direct.kept) and np.allclose(anchored.flops, direct.flops)
    plain = genome.width_curves("l2", error)
    for value in (0.0, np.nan, np.inf):
        assert genome.width_curves("l2", error, anchor=lambda masks, value=value: value).steps == plain.steps


@pytest.mark.parametrize("name", [*SPACES, "grouped"])
def test_errors_at_every_width_are_curves_too(name: str) -> None:
    """At each price no other admissible widths have less error and FLOPs together; groups without errors stay dense."""
    planner = make(name)._planner if name in SPACES else None
    space = prepared(name).space
    if planner is None:
        planner = Planner(space, ALLOCATIONS["evolved"], Budget(), 1)
    rng = np.random.default_rng(0)
    errors = {
        group.name: np.cumsum([0.0, *rng.uniform(0, 1, group.size // group.blocks)])
        for group in space.groups[: -1 if len(space.groups) > 1 else None]
    }
    curves = WidthCurves.of_errors(planner, errors)
    shares = [round(share, 9) for row in curves.kept[:-1] for share in row]
    legal = {round(float(c / s), 9) for s in space.sizes for c in range(1, int(s) + 1)}
    assert set(shares) <= legal
    rows = {tuple(row) for row in curves.kept[:-1].round(9).tolist()}
    for price in np.geomspace(0.1, 1000, 50):
        best = []
        for number, group in enumerate(space.groups):
            widths = [group.size]
            if group.name in errors:
                widths = list(range(group.size, 0, -group.blocks))
                widths = [w for w in widths if planner.widths.admissible(_alone(space, number, w))[number] == w]
            total = [
                errors.get(group.name, [0.0])[(group.size - w) // group.blocks]
                + price * float(space.flops_of(_alone(space, number, w))) / space.flops
                for w in widths
            ]
            best.append(round(widths[int(np.argmin(total))] / group.size, 9))
        assert tuple(best) in rows


def _alone(space: dp.PruningSpace, group: int, width: int) -> np.ndarray:
    counts = space.sizes.copy()
    counts[group] = width
    return counts


def test_nothing_to_lose_or_to_save(digits: Digits) -> None:
    curves = digits.genome().width_curves("l2", lambda masks: 0.0)
    assert curves.shares(1.0) == [1.0] * len(digits.space.groups) and np.isfinite(curves.kept).all()


def test_a_free_budget_is_what_was_asked_for(digits: Digits) -> None:
    genome, evaluator = digits.genome(), digits.evaluator(objectives=("flops",))
    curves = genome.width_curves("l2", evaluator.surrogate)
    for share in (0.8, 0.5, 0.2):
        masks = genome.decode(genome.balanced("l2", curves, share=share))
        assert abs(dp.flops(digits.space, masks) / digits.space.flops - share) < 0.04  # whole filters


def test_less_is_lost_than_with_equal_shares(digits: Digits) -> None:
    evaluator = digits.evaluator(objectives=("loss",))
    for budget in (0.6, 0.3):
        genome = digits.genome(max_flops=budget)
        for criterion in ("l2", "taylor_gate"):
            curves = genome.width_curves(criterion, evaluator.surrogate)
            balanced, equal = (genome.decode(g) for g in (genome.balanced(criterion, curves), genome.single(criterion)))
            assert evaluator.surrogate(balanced) < evaluator.surrogate(equal)


def test_widths_that_nothing_holds(digits: Digits) -> None:
    genome = digits.genome(allocation="uniform", max_flops=0.5)
    with pytest.raises(ConfigError, match="'uniform' has no keep genes; choose 'evolved'"):
        genome.width_curves("l2", lambda masks: 0.0)
    with pytest.raises(ConfigError, match="'uniform' has no keep genes"):
        genome.balanced("l2", digits.genome().width_curves("l2", lambda masks: 0.0))


def test_stages_stay_together() -> None:
    genome = make("residual", allocation="stage", max_flops=0.5)
    space = genome.space
    curves = genome.width_curves("a", losses(space, np.ones(len(space.groups))))
    individual = genome.balanced("a", curves)
    assert len(individual) == len(genome.layout) and dp.flops(space, genome.decode(individual)) <= 0.5 * space.flops


# ------------------------------------------------------------------ where a search begins
def test_refined_candidates_have_anchored_widths(digits: Digits) -> None:
    genome, evaluator = digits.genome(max_flops=0.5), digits.evaluator(objectives=("loss",))
    for refine in (False, True):
        fitness = evaluator.with_settings(refine=refine)
        anchor = fitness.output_distance if refine else None
        best = min(genome.criteria, key=lambda c: fitness.surrogate(genome.decode(genome.single(c, share=0.5))))
        curves = genome.width_curves(best, fitness.surrogate, anchor=anchor)
        first = StartingPoints(dp.algorithms.BlendProblem(genome, fitness)).balanced(1)[0]
        assert list(first) == genome.balanced(genome.criteria[0], curves)


@pytest.mark.parametrize("max_flops", [None, 0.5, (0.3, 0.7)])
def test_single_criteria_with_balanced_widths_begin(
    digits: Digits, max_flops: float | tuple[float, float] | None
) -> None:
    """Of every criterion; with a free budget of the best third by the error, over a range of costs."""
    genome, evaluator = digits.genome(max_flops=max_flops), digits.evaluator(objectives=("accuracy", "flops"))
    population = [tuple(ind) for ind in dp.make_toolbox(genome, evaluator, seed=0).population(n=24)]
    errors = {c: evaluator.surrogate(genome.decode(genome.single(c, share=0.5))) for c in genome.criteria}
    best = sorted(errors, key=lambda c: errors[c])
    curves = genome.width_curves(best[0], evaluator.surrogate)
    if isinstance(max_flops, float):
        singles = [genome.single(c) for c in genome.criteria]
        balanced = [genome.balanced(c, curves) for c in best]
    else:
        narrow, wide = max_flops or (0.25, 0.95)
        singles = [
            genome.single(c, share=s)
            for c, s in zip(genome.criteria * 2, np.linspace(wide, narrow, 12).tolist(), strict=False)
        ]
        shares = np.linspace(wide, narrow, 24 - len(set(map(tuple, singles)))) ** (2 if max_flops is None else 1)
        third = best[: -(-len(best) // 3)]
        balanced = [genome.balanced(third[i % len(third)], curves, share=s) for i, s in enumerate(shares.tolist())]
    assert len(set(population)) == 24 and {tuple(ind) for ind in [*singles, *balanced]} <= set(population)


@pytest.mark.parametrize("max_flops", [None, 0.5, (0.3, 0.7)])
def test_where_nothing_is_compensated_widths_are_by_one_threshold(
    digits: Digits, max_flops: float | tuple[float, float] | None
) -> None:
    """A filter that is pruned scores no more than one that is kept, whatever their groups."""
    genome = digits.genome(max_flops=max_flops)
    plain = digits.evaluator(objectives=("accuracy", "flops"), compensate=None)
    population = [tuple(ind) for ind in dp.make_toolbox(genome, plain, seed=0).population(n=24)]
    same = [1.0] * len(digits.space.groups), [0.0] * len(digits.space.groups)
    wide, narrow = (max_flops[1], max_flops[0]) if isinstance(max_flops, tuple) else (0.95, 0.25)
    shares = np.linspace(wide, narrow, 6) ** (2 if max_flops is None else 1)
    ranked = {tuple(genome.affine(c, *same, share=s)) for c, s in zip(genome.criteria, shares, strict=False)}
    assert len(set(population)) == 24 and ranked <= set(population)
    first = genome.decode(genome.affine(genome.criteria[0], *same, share=shares[0]))
    scores = {g.name: digits.scores[g.name][genome.criteria[0]] for g in digits.space.groups}
    relative = {name: each / each.max() for name, each in scores.items()}
    kept = np.concatenate([relative[name][np.asarray(first[name])] for name in relative])
    gone = np.concatenate([relative[name][~np.asarray(first[name])] for name in relative])
    assert np.quantile(gone, 0.9) <= np.quantile(kept, 0.1)  # the last FLOPs of a budget are spent beside the threshold


@pytest.mark.parametrize("max_flops", [None, 0.5])
def test_where_candidates_are_refined_random_ones_are_far_from_even(digits: Digits, max_flops: float | None) -> None:
    """Their widths differ much more from group to group than without refinement; their blends are as random."""
    genome, found = digits.genome(max_flops=max_flops), {}
    for drafts in (False, True):
        options = {"refine": True, "refine_images": 20} if drafts else {}
        evaluator = digits.evaluator(objectives=("loss", "flops"), **options)
        toolbox = dp.make_toolbox(genome, evaluator, seed=0)
        population = [list(ind) for ind in toolbox.population(n=24)]
        assert population == [list(ind) for ind in dp.make_toolbox(genome, evaluator, seed=0).population(n=24)]
        keep = genome.layout.of_kind("keep")
        random = population[-6:] if drafts else [list(toolbox.individual()) for _ in range(6)]
        genes = np.array(random)
        assert (genes >= genome.layout.low).all() and (genes <= genome.layout.high).all()
        found[drafts] = [float(np.std([ind[k] for k in keep])) for ind in random]
        factors = genome.layout.of_kind("factor")
        assert all(0 < ind[k] < 1 for ind in random for k in factors)
    assert np.mean(found[True]) > 2 * np.mean(found[False])


def test_no_balance_without_compensation_or_widths(digits: Digits) -> None:
    plain = digits.evaluator(objectives=("accuracy", "flops"), compensate=None)
    assert not StartingPoints(dp.algorithms.BlendProblem(digits.genome(), plain)).balanced(8)
    counted = digits.evaluator(objectives=("params", "flops"), calibration=None, recalibrate=None)
    assert len(dp.make_toolbox(digits.genome(), counted, seed=0).population(n=16)) == 16
    evaluator = digits.evaluator(objectives=("accuracy", "flops"))
    assert not StartingPoints(dp.algorithms.BlendProblem(digits.genome(allocation="global"), evaluator)).balanced(8)
    affine = AffineGenome(digits.space, digits.scores, digits.clusters, criterion="l2", max_flops=0.5)
    assert not StartingPoints(dp.algorithms.BlendProblem(affine, evaluator)).balanced(8)
    assert len(StartingPoints(dp.algorithms.BlendProblem(digits.genome(), evaluator)).balanced(8)) == 8


def test_the_worst_filters_go_first() -> None:
    genome = make("residual")
    seen: list[dp.Masks] = []

    def error(masks: dp.Masks) -> float:
        seen.append(masks)
        return float(len(seen))

    genome.width_curves("b", error)
    ranking = genome.importance(genome.single("b"))
    for masks in seen:
        for name, scores in ranking.items():
            kept = np.asarray(masks[name])
            assert kept.all() or scores[kept].min() >= scores[~kept].max()
    assert len(seen) == 15 * len(genome.space.groups)


@pytest.mark.parametrize("kind", ["borda", "one criterion", "stage", "medoid"])
def test_random_ones_have_widths_of_their_own(digits: Digits, kind: str) -> None:
    """At a budget, where compensation balances: as many networks as individuals, and widths that differ."""
    evaluator = digits.evaluator(objectives=("loss",))
    if kind == "borda":
        genome = borda(digits.space, digits.scores, digits.clusters, max_flops=0.5)
    elif kind == "one criterion":
        scores = Table({group: {"l2": by["l2"]} for group, by in digits.scores.scores.items()})
        genome = dp.Genome(digits.space, scores, dp.cluster(scores), max_flops=0.5)
    else:
        options: dict[str, str] = {"allocation": "stage"} if kind == "stage" else {"candidates": kind}
        genome = digits.genome(max_flops=0.5, **options)
    population = dp.make_toolbox(genome, evaluator, seed=0).population(n=24)
    masks = genome.decode_many(population)
    widths = {tuple(digits.space.kept_counts(each).tolist()) for each in masks}
    assert len(set(masks)) == 24 and len(widths) > 6


def test_what_begins_is_sent_without_network_and_data(digits: Digits) -> None:
    """Pools and copies of a toolbox get the problem by its file; a copied toolbox judges with the same evaluator."""
    toolbox = dp.make_toolbox(digits.genome(max_flops=0.5), digits.evaluator(objectives=("loss",)), seed=0)
    first = toolbox.population(n=6)
    assert len(pickle.dumps(toolbox.population)) < 100_000
    assert copy.deepcopy(toolbox).evaluate.func.__self__ is toolbox.evaluate.func.__self__
    assert copy.deepcopy(toolbox).population.func.__self__._problem is toolbox.evaluate.func.__self__
    random.seed(0), np.random.seed(0)
    again = pickle.loads(pickle.dumps(toolbox.population))(n=6)
    assert [list(ind) for ind in again[:4]] == [list(ind) for ind in first[:4]]


def test_evaluators_of_ones_own_need_no_settings(digits: Digits) -> None:
    class Own:
        names, weights, settings, dense = ("loss",), (-1.0,), None, None

        def __call__(self, masks: dp.Masks) -> tuple[float, ...]:
            return (float(dp.flops(digits.space, masks)),)

    assert len(dp.make_toolbox(digits.genome(max_flops=0.5), Own(), seed=0).population(n=12)) == 12
