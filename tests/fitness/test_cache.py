"""The evaluator's cache: it belongs to the evaluator, and equal masks are evaluated once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Digits

import deap_prune as dp
from deap_prune.errors import DataError

Values = tuple[float, ...]


def random_masks(digits: Digits, count: int) -> list[dp.Masks]:
    return [dp.Masks.random(digits.space, seed=seed) for seed in range(count)]


def test_equal_masks_are_evaluated_once(digits: Digits) -> None:
    evaluate = digits.evaluator()
    a, b = random_masks(digits, 2)
    values = evaluate.many([a, b, dp.Masks(dict(a)), b, a])
    assert values == [values[0], values[1], values[0], values[1], values[0]]
    assert (evaluate.counters.candidates, evaluate.counters.cache_hits) == (2, 3)
    assert evaluate.counters.samples == 2 * (100 + 200)
    assert evaluate(a) == values[0] == digits.evaluator()(a)
    assert evaluate.counters.cache_hits == 4
    assert all(evaluate.counters.seconds[phase] > 0 for phase in ("plan", "recalibrate", "forward"))


def test_compute_gets_the_masks_that_the_cache_lacks(digits: Digits) -> None:
    """Each once, in order; the values come back in the order of all masks."""
    evaluate = digits.evaluator(objectives=("flops",))
    a, b, c = random_masks(digits, 3)
    evaluate(b)
    batches: list[list[dp.Masks]] = []

    def compute(masks: list[dp.Masks]) -> list[Values]:
        batches.append(masks)
        return [(float(number),) for number in range(len(masks))]

    values = evaluate.many([c, a, b, dp.Masks(dict(a)), c], compute=compute)
    assert batches == [[c, a]]
    assert values == [(0.0,), (1.0,), evaluate.compute(b), (1.0,), (0.0,)]
    assert list(evaluate.cache) == [b, c, a] and evaluate(a) == (1.0,)
    assert (evaluate.counters.candidates, evaluate.counters.cache_hits) == (3, 4)


def test_an_error_keeps_the_values_computed_before(digits: Digits) -> None:
    evaluate = digits.evaluator(objectives=("flops",))
    a, b, c = random_masks(digits, 3)

    def compute(masks: list[dp.Masks]) -> Iterator[Values]:
        for candidate in masks:
            if candidate == c:
                raise DataError("this candidate can't be evaluated")
            yield evaluate.compute(candidate)

    with pytest.raises(DataError, match="this candidate"):
        evaluate.many([a, b, c], compute=compute)
    assert list(evaluate.cache) == [a, b] and evaluate.counters.candidates == 2
    assert evaluate.many([a, b, c]) == [evaluate.compute(masks) for masks in (a, b, c)]
    assert evaluate.counters.candidates == 3


@pytest.mark.parametrize("count", [1, 3])
def test_compute_gives_one_result_per_mask(digits: Digits, count: int) -> None:
    evaluate = digits.evaluator(objectives=("flops",))
    with pytest.raises(ValueError, match=r"zip\(\)"):
        evaluate.many(random_masks(digits, 2), compute=lambda masks: [(0.5,)] * count)


def test_callers_can_not_write_to_the_cache(digits: Digits) -> None:
    evaluate = digits.evaluator(objectives=("flops",))
    (masks,) = random_masks(digits, 1)
    cache: Any = evaluate.cache
    with pytest.raises(TypeError, match="does not support item assignment"):
        cache[masks] = (0.5,)
    with pytest.raises(AttributeError):
        cache.update({masks: (0.5,)})
    with pytest.raises(AttributeError):
        evaluate.cache = {}  # type: ignore[misc]
    assert not cache
    evaluate(masks)
    assert list(cache) == [masks]  # the view follows the evaluator


def test_restore_sets_cache_counter_and_dense_values(digits: Digits) -> None:
    a, b = random_masks(digits, 2)
    evaluate = digits.evaluator()
    evaluate.restore({a: (0.25, 0.5)}, candidates=7, dense={"accuracy": 0.75})
    assert evaluate(a) == (0.25, 0.5) and evaluate.counters.candidates == 7
    assert evaluate.dense["values"]["accuracy"] == 0.75
    evaluate(b)
    assert evaluate.counters.candidates == 8


def test_other_settings_and_workers_start_with_an_empty_cache(digits: Digits) -> None:
    (masks,) = random_masks(digits, 1)
    evaluate = digits.evaluator()
    value = evaluate(masks)
    for fresh in (evaluate.with_settings(recalibrate="data"), evaluate.for_workers()):
        assert not fresh.cache
        fresh(masks)
    assert dict(evaluate.cache) == {masks: value}
