"""The fitness as evolution sees it: evaluators with little are adapted, whole ones are used as they are."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from conftest import Digits

import deap_prune as dp
from deap_prune.evolution.fitness import PlainFitness, Values, as_fitness
from tests.helpers.fakes import CachedFake, Fake
from tests.helpers.pruning import prepared


def random_masks(count: int) -> list[dp.Masks]:
    return [dp.Masks.random(prepared("residual").space, keep=0.5, seed=seed) for seed in range(count)]


def test_an_evaluator_is_a_fitness(digits: Digits) -> None:
    evaluate, fake = digits.evaluator(objectives=("flops",)), CachedFake(prepared("residual").space)
    assert as_fitness(evaluate) is evaluate and as_fitness(fake) is fake


def test_a_plain_evaluator_gets_the_rest_of_a_fitness() -> None:
    plain = Fake(prepared("residual").space)
    fitness = as_fitness(plain)
    (masks,) = random_masks(1)
    assert isinstance(fitness, PlainFitness)
    assert (fitness.names, fitness.weights) == (plain.names, plain.weights)
    assert fitness.settings == plain.settings and fitness.dense == plain.dense
    assert fitness(masks) == fitness.compute(masks) == plain(masks)
    assert not fitness.compensates and not fitness.learns and fitness.learned() is None
    assert fitness.costs(masks) == [] and fitness.surrogate(masks) == 0 and not fitness.cache


def test_a_plain_evaluator_evaluates_one_by_one() -> None:
    plain = Fake(prepared("residual").space)
    a, b = random_masks(2)
    assert as_fitness(plain).many([a, b, a]) == [plain(a), plain(b), plain(a)]


def test_a_plain_evaluators_own_many_is_used() -> None:
    batches: list[int] = []

    class Many(Fake):
        def many(self, masks: Iterable[dp.Masks]) -> list[Values]:
            masks = list(masks)
            batches.append(len(masks))
            return [self(m) for m in masks]

    plain = Many(prepared("residual").space)
    masks = random_masks(3)
    assert as_fitness(plain).many(masks) == [plain(m) for m in masks] and batches == [3]


def test_compute_gets_equal_masks_once() -> None:
    a, b = random_masks(2)
    batches: list[list[dp.Masks]] = []

    def compute(masks: list[dp.Masks]) -> list[Values]:
        batches.append(masks)
        return [(float(number), 0.0) for number in range(len(masks))]

    fitness = as_fitness(Fake(prepared("residual").space))
    assert fitness.many([b, a, dp.Masks(dict(b))], compute=compute) == [(0.0, 0.0), (1.0, 0.0), (0.0, 0.0)]
    assert batches == [[b, a]]


@pytest.mark.parametrize("name", ["names", "weights", "settings", "dense", "cache", "compensates", "learns"])
def test_a_fitness_has_the_attributes_of_the_protocol(name: str, digits: Digits) -> None:
    evaluate = digits.evaluator(objectives=("flops",))
    assert hasattr(evaluate, name) and hasattr(as_fitness(Fake(prepared("residual").space)), name)
