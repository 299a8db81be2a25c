"""A fitness that generalises: draws of images, races, and the guard."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Digits
from hypothesis import given, settings
from hypothesis import strategies as st

import deap_prune as dp
from deap_prune.data.batches import count_samples
from deap_prune.errors import ConfigError, DataError
from deap_prune.fitness import Sampling
from deap_prune.fitness.racing import Rivals, last_front

BATCHES = [(torch.arange(k, k + 4).float(), torch.arange(k, k + 4)) for k in range(0, 20, 4)]


def total(batches: list[Any]) -> list[int]:
    return [int(v) for _, targets in batches for v in targets]


# ------------------------------------------------------------------ draws
def test_a_draw_has_each_image_once_and_its_label() -> None:
    sampling = Sampling(images=7, redraw=True, seed=3)
    draws = [sampling.draw(BATCHES, number, 3) for number in (0, 1, 2, 1)]
    for batches in draws:
        assert [count_samples(b) for b in batches] == [3, 2, 2]
        assert all(torch.equal(inputs, targets.float()) for inputs, targets in batches)
        assert len(set(total(batches))) == 7
    assert total(draws[1]) == total(draws[3]) and total(draws[0]) != total(draws[1]) != total(draws[2])
    assert total(Sampling(images=7, redraw=True, seed=4).draw(BATCHES, 1, 3)) != total(draws[1])
    fixed = Sampling(images=7)
    assert total(fixed.draw(BATCHES, 1, 3)) == total(fixed.draw(BATCHES, 2, 3))
    assert Sampling().draw(BATCHES, 5, 3) is BATCHES


def test_augmented_images_are_shifted_and_keep_their_labels() -> None:
    images = torch.rand(6, 3, 16, 16) + 1
    batches = [(images, torch.arange(6))]
    (moved, labels), *rest = Sampling(augment=True, redraw=True).draw(batches, 1, 6)
    assert not rest and torch.equal(labels, torch.arange(6)) and not torch.equal(moved, images)
    for before, after in zip(images, moved, strict=True):  # no pixel is new: they are zero, or were there
        assert set(after[after > 0].tolist()) <= set(before.flatten().tolist())
        assert (after[0] > 0).sum() >= 14 * 14


def test_parents_are_judged_again_on_a_new_draw(digits: Digits) -> None:
    sampling = Sampling(images=50, augment=True, redraw=True)
    names = ("loss", "agreement", "flops")
    a, b, c = (dp.Masks.random(digits.space, keep=0.6, seed=s) for s in range(3))
    evaluate = digits.evaluator(objectives=names, sampling=sampling)
    first = evaluate.many([a, b])
    second = evaluate.next_generation(1, [a, b])
    assert first != second and evaluate.next_generation(1, [a, b]) == second
    child = evaluate(c)
    again = digits.evaluator(objectives=names, sampling=sampling)
    again(c)  # another past
    assert again.next_generation(1, [b, a]) == second[::-1] and again(c) == child
    assert evaluate.counters.cache_hits == 2


def test_without_redraw_parents_keep_their_values(digits: Digits) -> None:
    evaluate = digits.evaluator(sampling=Sampling(images=100))
    masks = dp.Masks.random(digits.space)
    value = evaluate(masks)
    assert evaluate.next_generation(1, [masks]) == [value] and evaluate.counters.candidates == 1
    assert evaluate.counters.samples == 100 + 100  # calibration and the draw


def test_sampling_messages(digits: Digits) -> None:
    with pytest.raises(ConfigError, match="images is 0; give a number from 1 up"):
        Sampling(images=0)
    with pytest.raises(ConfigError, match="redraw changes nothing"):
        Sampling(redraw=True)
    with pytest.raises(ConfigError, match="images is 201, but the validation data has 200 samples"):
        digits.evaluator(sampling=Sampling(images=201))
    with pytest.raises(ConfigError, match="augment takes batches"):
        Sampling(augment=True).draw(BATCHES, 0, 4)


# ------------------------------------------------------------------ racing
@given(seed=st.integers(0, 10_000))
@settings(max_examples=60)
def test_who_is_dropped_is_dominated_by_a_survivor_of_the_last_front(seed: int) -> None:
    rng = np.random.default_rng(seed)
    losses, costs = rng.normal(1, 0.5, (6, 80)) + rng.normal(0, 0.3, (6, 1)), rng.integers(0, 4, (6, 1)) / 4.0
    rivals = Rivals.of(0.95, losses, costs)
    child, cost = rng.normal(1.2, 0.5, 80), float(rng.integers(0, 4)) / 4
    estimate = rivals.beat([cost], child[:40])
    survivors = np.column_stack([losses.mean(axis=1), costs])
    if estimate is not None:
        everyone = np.vstack([survivors, [estimate, cost]])
        assert last_front(everyone).tolist() == [6]  # alone behind all of them: (mu + 1) choose mu drops it
    assert rivals.beat([cost], child) is None  # all images seen: nothing is left to be guessed


def test_races_keep_their_confidence() -> None:
    """A child as good as its rival is dropped in a share of races near one minus the confidence."""
    rng, dropped = np.random.default_rng(0), 0
    for _ in range(2000):
        both = rng.normal(1, 1, (2, 400))
        both += both.mean() - both.mean(axis=1, keepdims=True)  # equal over all images
        dropped += Rivals(0.95, both[:1], np.zeros((1, 0))).beat([], both[1, :100]) is not None
    assert 0.03 < dropped / 2000 < 0.07


def test_race_by_hand() -> None:
    rival = np.array([[0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    seen = np.array([1.0, 1.0, 1.0, 3.0])
    error = np.std([1.0, 0.0, 1.0, 2.0], ddof=1) / np.sqrt(4) * np.sqrt(1 - 4 / 8)
    confidence = NormalDist().cdf(1.0 / error)
    race = [Rivals(confidence + d, rival, np.zeros((1, 0))).beat([], seen) for d in (-1e-6, 1e-6)]
    assert race == [pytest.approx(0.25 + 1.0), None]
    assert Rivals(0.6, rival, np.ones((1, 1))).beat([0.5], seen) is None  # cheaper than the rival


def test_racing_drops_bad_children_early_and_good_ones_never(digits: Digits) -> None:
    good = [dp.Masks.random(digits.space, keep=0.9, seed=s) for s in range(3)]
    bad = dp.Masks.random(digits.space, keep=0.2, seed=0)
    plain = digits.evaluator(objectives=("loss",), batch_size=40)
    racing = digits.evaluator(objectives=("loss",), batch_size=40, racing=0.99)
    assert racing.next_generation(1, good) == plain.many(good)
    before = racing.counters.samples
    estimate = racing(bad)
    assert racing.counters.samples - before < 100 + 200 and racing.counters.dropped == 1
    assert estimate > max(racing.many(good)) and racing(bad) == estimate
    best = min(good, key=plain)
    assert racing(best) == plain(best)
    fresh = digits.evaluator(objectives=("loss",), batch_size=40, racing=0.99)  # as after a stop
    fresh.cache.update(racing.cache)
    fresh.next_generation(1, good)
    assert fresh(bad) == estimate
    racing.next_generation(2, [bad])  # who lives on is judged in full
    assert racing(bad) == plain(bad)


def test_racing_asks_an_objective_once_a_batch(digits: Digits) -> None:
    """One that runs the network again is dear: five shifts and the pass itself, 6 x 200 images."""
    masks = dp.Masks.random(digits.space, keep=0.9)
    options = {"objectives": ("shift_consistency",), "batch_size": 40, "recalibrate": None}
    plain, racing = digits.evaluator(**options), digits.evaluator(**options, racing=0.99)
    assert racing(masks) == plain(masks) and racing.counters.samples == plain.counters.samples == 6 * 200


def test_racing_with_a_cost(digits: Digits) -> None:
    """A cheaper child may be worse; it is not dropped."""
    wide, narrow = (dp.Masks.random(digits.space, keep=k) for k in (0.9, 0.2))
    racing = digits.evaluator(objectives=("accuracy", "flops"), batch_size=40, racing=0.9)
    racing.next_generation(1, [wide])
    assert racing(narrow) == digits.evaluator(batch_size=40)(narrow)
    racing.next_generation(2, [narrow])
    assert racing(wide) == digits.evaluator(batch_size=40)(wide) and racing.counters.dropped == 0


def test_racing_messages(digits: Digits) -> None:
    with pytest.raises(ConfigError, match=r"racing is 1; give a confidence between 0\.5 and 1"):
        digits.evaluator(racing=1)
    with pytest.raises(ConfigError, match="racing needs exactly one objective that is a mean"):
        digits.evaluator(racing=0.9, objectives=("accuracy", "loss"))


# ------------------------------------------------------------------ guard
def test_guard_is_measured_like_validation_and_changes_nothing(digits: Digits) -> None:
    x, y = digits.splits.validation
    guard = (x[200:300], y[200:300])
    masks = dp.Masks.random(digits.space, keep=0.7)
    evaluate = digits.evaluator(guard=guard)
    found = evaluate.on_guard(masks)
    assert found == digits.evaluator(validation=guard)(masks)
    assert evaluate(masks) == digits.evaluator()(masks)
    with pytest.raises(DataError, match="there are no guard images"):
        digits.evaluator().on_guard(masks)


# ------------------------------------------------------------------ surrogate
def test_prescreen_picks_the_least_dominated_of_each_slot(digits: Digits) -> None:
    evaluate = digits.evaluator(objectives=("loss",))
    masks = [dp.Masks.random(digits.space, keep=k, seed=s) for s, k in enumerate((0.3, 0.9, 0.5, 0.6, 0.2, 0.4))]
    errors = [evaluate.surrogate(m) for m in masks]
    assert evaluate.surrogate(dp.Masks({})) == 0 and min(errors) > 0
    assert evaluate.prescreen(masks, 2) == [1, 3] == [errors.index(min(errors[:3])), errors.index(min(errors[3:]))]
    assert evaluate.counters.samples == 0
    both = digits.evaluator(objectives=("loss", "flops"))
    assert both.prescreen([masks[4], masks[1]], 2) == [0, 1]  # one candidate a slot
    odd = evaluate.prescreen(masks[:5], 2)  # three and two
    assert odd == [errors.index(min(errors[:3])), errors.index(min(errors[3:5]))]


def test_surrogate_without_data(digits: Digits) -> None:
    evaluate = digits.evaluator(calibration=None, recalibrate=None)
    with pytest.raises(DataError, match="calibration data is needed"):
        evaluate.surrogate(dp.Masks({}))
