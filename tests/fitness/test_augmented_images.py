"""Augmented validation images, and held-out (guard) images."""

from __future__ import annotations

import pytest
import torch
from conftest import Digits

import deap_prune as dp
from deap_prune.data.draws import augmented
from deap_prune.errors import ConfigError, DataError


def test_all_candidates_see_the_same_shifts(digits: Digits) -> None:
    """The values are those on the augmented images, whatever was evaluated before."""
    a, b = (dp.Masks.random(digits.space, keep=0.6, seed=s) for s in range(2))
    names = ("loss", "agreement", "flops")
    evaluate = digits.evaluator(objectives=names, augment=True, seed=3)
    values = evaluate.many([a, b])
    assert digits.evaluator(objectives=names, augment=True, seed=3).many([b, a]) == values[::-1]
    assert digits.evaluator(objectives=names, augment=True, seed=4)(a) != values[0]
    ((images, labels),) = augmented([digits.validation], 3)
    on_shifted = digits.evaluator(objectives=names, validation=(images, labels))
    assert values == [pytest.approx(on_shifted(masks), rel=1e-4) for masks in (a, b)]


def test_final_figures_are_measured_on_the_images_as_they_are(digits: Digits) -> None:
    masks = dp.Masks.random(digits.space, keep=0.6)
    evaluate, plain = digits.evaluator(objectives=("loss",), augment=True), digits.evaluator(objectives=("loss",))
    assert evaluate(masks) != plain(masks)
    assert evaluate.with_settings(augment=False)(masks) == plain(masks)
    assert evaluate.dense == plain.dense


def test_only_images_can_be_augmented(digits: Digits) -> None:
    x, y = digits.validation
    evaluate = digits.evaluator(augment=True, validation=[(x.flatten(1), y)], forward=_from_rows)
    with pytest.raises(ConfigError, match=r"augment takes batches \(images, targets\) with images of shape"):
        evaluate(dp.Masks({}))


def _from_rows(model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return model(batch[0].reshape(len(batch[0]), 1, 8, 8)), batch[1]


def test_guard_images_are_measured_like_validation_images_and_change_nothing(digits: Digits) -> None:
    x, y = digits.splits.validation
    guard = (x[200:300], y[200:300])
    masks = dp.Masks.random(digits.space, keep=0.7)
    evaluate = digits.evaluator(guard=guard)
    assert evaluate.on_guard(masks) == digits.evaluator(validation=guard)(masks)
    assert evaluate(masks) == digits.evaluator()(masks)
    with pytest.raises(DataError, match="there are no guard images"):
        digits.evaluator().on_guard(masks)
