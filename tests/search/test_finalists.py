"""The end of a search: which networks are refined, and which front is returned."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Digits

import deap_prune as dp
from deap_prune.algorithms import BlendProblem, StartingPoints
from tests.helpers.runs import CRITERIA, labelled_data, labelled_search, problem

VARIANTS: dict[str, dict[str, Any]] = {
    "compensated": {"guard": 40},
    "drafts": {"compare": "drafts", "max_flops": 0.6, "objectives": ("loss",)},
    "augmented": {"augment": True, "guard": 40},
    "not refined": {"augment": True, "refine": False},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_final_values_are_those_of_the_delivered_networks(name: str) -> None:
    """On all validation images as they are, however candidates were compared."""
    result = labelled_search(**VARIANTS[name])
    x, y = labelled_data()["validation"]
    count = len(y) - VARIANTS[name].get("guard", 0)
    data = {"calibration": labelled_data()["calibration"], "validation": (x[:count], y[:count])}
    names = result.evaluator.names
    plain = dp.Evaluator(problem()[0], result.space, objectives=names, batch_size=40, device="cpu", **data)
    for solution in result.front:
        values = plain.measure(result.slim(solution), solution.masks)
        assert values == pytest.approx(tuple(solution.values.values()), rel=1e-5)


def test_drafts_are_compared_on_fewer_images_than_the_front_is_refined_on() -> None:
    """The front stores how its networks were refined, not how candidates were compared."""
    result = labelled_search(**VARIANTS["drafts"], refine_images=300, generations=0)
    assert result.compared_by.settings["refine"] and result.compared_by.settings["refine_images"] == 250
    assert result.front.settings["refine"] and result.front.settings["refine_images"] == 300


def search_digits(digits: Digits, **options: Any) -> dp.Result:
    data = {"calibration": digits.calibration, "validation": digits.validation, "progress": False, "device": "cpu"}
    small = {
        "criteria": CRITERIA,
        "population": 6,
        "generations": 1,
        "refine_images": 40,
        "batch_size": 40,
        "select": None,
    }
    return dp.search(digits.model, digits.calibration[0], **{**small, **data, **options})


def test_the_best_refined_network_wins(digits: Digits) -> None:
    """With one objective no refined finalist is better than the result."""
    options: dict[str, Any] = {"objectives": ("loss",), "max_flops": 0.2, "select": None}
    alone, result = search_digits(digits, finalists=0, **options), search_digits(digits, finalists=4, **options)
    points, half = StartingPoints(BlendProblem(result.genome, result.compared_by)), len(result.scores.criteria) // 2
    suited = [*points.balanced(half, refined=True), *points.ranked(half)]
    finalists = result.genome.decode_many([*suited, tuple(alone.best.individual)])
    losses = [result.evaluator.measure(result.slim(masks), masks)[0] for masks in finalists]
    assert result.best.values["loss"] <= min(losses)
    # Whether refinement helped the best network of the search alone depends on the machine.
    assert (alone.best.values["loss"] == losses[-1]) == alone.front.settings["refine"]
    assert alone.best.values["loss"] <= losses[-1]
    assert len(result.front) == 1 and result.front.settings["refine"]


@pytest.mark.slow
def test_single_criteria_join_the_front_that_they_are_not_dominated_by(digits: Digits) -> None:
    """With several objectives single criteria are refined too, over the range of costs.

    Slow: it refines some 30 networks; ``test_single_criteria_join_fronts_of_uniform_widths`` runs always.
    """
    # Evolution alone has next to nothing.
    short: dict[str, Any] = {"generations": 0, "population": 2, "select": None, "refine_images": 150}
    alone, result = search_digits(digits, finalists=0, **short), search_digits(digits, finalists=2, **short)
    points, count = StartingPoints(BlendProblem(result.genome, result.compared_by)), len(result.scores.criteria)
    balanced, ranked = points.balanced(count, refined=True), points.ranked(count)
    masks = [*result.genome.decode_many([*balanced, *ranked]), *(s.masks for s in alone.front)]
    front = [tuple(s.values.values()) for s in result.front]
    for accuracy, flops in [result.evaluator.measure(result.slim(m), m) for m in masks]:
        assert any(best >= accuracy and cost <= flops for best, cost in front)
    assert result.front.hypervolume() > alone.front.hypervolume()
    assert {s.individual for s in result.front} & {tuple(ind) for ind in [*balanced, *ranked]}


def test_a_front_that_refinement_makes_worse_is_returned_unrefined() -> None:
    """An untrained network is a bad teacher: by the labels' loss its pruned networks are better than it is."""
    options: dict[str, Any] = {"objectives": ("loss",), "max_flops": 0.5}
    result, unrefined = labelled_search(**options), labelled_search(refine=False, **options)
    assert result.best.values == unrefined.best.values and not result.front.settings["refine"]
    refined = result.compared_by.with_settings(refine=True)
    ranked = StartingPoints(BlendProblem(result.genome, refined)).ranked(4)
    for masks in (result.best.masks, *result.genome.decode_many(ranked)):
        assert refined.measure(refined.slim(masks), masks)[0] > result.best.values["loss"]


@pytest.mark.parametrize("select", ["sequential", None])
def test_refinement_selects_filters_for_the_widths_of_an_individual(select: str | None) -> None:
    result = labelled_search(generations=1, select=select)
    assert result.front.settings["refine"]
    decoded = [result.genome.decode(solution.individual) for solution in result.front]
    widths = [result.space.kept_counts(masks).tolist() for masks in decoded]
    assert [result.space.kept_counts(solution.masks).tolist() for solution in result.front] == widths
    assert ([solution.masks for solution in result.front] == decoded) == (select is None)


def test_single_criteria_join_fronts_of_uniform_widths() -> None:
    result = labelled_search(finalists=1, allocation="uniform", generations=0, population=2, max_flops=(0.2, 0.9))
    assert len(result.front) > 2
