"""The saved state of a training: interruption, other settings, other losses."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deap_prune.errors import RunError
from deap_prune.training import Recipe
from tests.helpers.training import Pair, equal_states, make_classifier, make_regressor, train_briefly


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_interrupted_training_ends_like_an_uninterrupted_one(
    two_classes: Pair, optimizer: Any, tmp_path: Any
) -> None:
    recipe = Recipe(optimizer=optimizer, ema=0.9, batch_size=16, warmup_epochs=1)
    options = {"epochs": 4, "augment": True, "recipe": recipe, "teacher": make_classifier()}
    uninterrupted, interrupted = make_classifier(), make_classifier()
    records = train_briefly(uninterrupted, two_classes, two_classes, **options)
    calls = iter(range(100))

    def stop(inputs: Tensor, generator: torch.Generator) -> Tensor:
        if next(calls) == 17:  # in the third epoch, of 7 batches each
            raise KeyboardInterrupt
        from deap_prune.data import augment

        return augment(inputs, generator)

    with pytest.raises(KeyboardInterrupt):
        train_briefly(interrupted, two_classes, two_classes, **{**options, "augment": stop}, state=tmp_path / "state")
    fresh = make_classifier()
    with torch.no_grad():
        fresh[0].weight.zero_()
    resumed = train_briefly(fresh, two_classes, two_classes, **options, state=tmp_path / "state")
    assert equal_states(uninterrupted, fresh)
    assert [(r.epoch, r.train_loss, r.lr) for r in resumed] == [(r.epoch, r.train_loss, r.lr) for r in records]
    assert (
        train_briefly(fresh, two_classes, two_classes, **options, state=tmp_path / "state") == resumed
    )  # no epoch is left
    assert equal_states(uninterrupted, fresh)


def test_a_state_with_other_settings_is_an_error(two_classes: Pair, tmp_path: Any) -> None:
    train_briefly(make_classifier(), two_classes, state=tmp_path / "state")
    with pytest.raises(RunError, match="belongs to a training with another lr, seed; give the same"):
        train_briefly(make_classifier(), two_classes, state=tmp_path / "state", recipe=Recipe(lr=0.5), seed=1)
    with pytest.raises(RunError, match="belongs to a training with another teacher, augment; give the same"):
        train_briefly(make_classifier(), two_classes, state=tmp_path / "state", teacher=make_classifier(), augment=True)
    with pytest.raises(RunError, match="belongs to another network"):
        train_briefly(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), two_classes, state=tmp_path / "state")
    (tmp_path / "state").write_text("nothing")
    with pytest.raises(RunError, match="can't be read as the state of a training"):
        train_briefly(make_classifier(), two_classes, state=tmp_path / "state")


class WeightedLoss(nn.Module):
    """A user's loss without ``extra_repr``."""

    def __init__(self, weight: float, classes: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.register_buffer("classes", classes)

    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        return self.weight * (out - y).square().mean()


@pytest.mark.parametrize(
    ("loss", "other_loss"),
    [
        (partial(F.huber_loss, delta=0.1), partial(F.huber_loss, delta=9.0)),
        (nn.HuberLoss(delta=0.1), nn.HuberLoss(delta=9.0)),
        (WeightedLoss(1.0, torch.ones(2)), WeightedLoss(1.0, torch.zeros(2))),
        (partial(partial(F.huber_loss), delta=0.1), F.huber_loss),
    ],
)
def test_a_state_with_another_loss_is_an_error(
    loss: Any, other_loss: Any, left_brightness: Pair, tmp_path: Any
) -> None:
    """Losses are compared by name and options, which are equal in every process; never by address."""
    train_briefly(make_regressor(), left_brightness, loss=loss, state=tmp_path / "state")
    train_briefly(make_regressor(), left_brightness, loss=copy.deepcopy(loss), state=tmp_path / "state")
    assert b" at 0x" not in (tmp_path / "state").read_bytes()
    with pytest.raises(RunError, match="belongs to a training with another loss"):
        train_briefly(make_regressor(), left_brightness, loss=other_loss, state=tmp_path / "state")
