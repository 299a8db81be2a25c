"""The training recipe: schedules, optimizers, averaged weights, early stopping and precision."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deap_prune.errors import ConfigError
from deap_prune.training import EpochRecord, Recipe, accuracy, best_epoch
from tests.helpers.training import Pair, equal_states, make_classifier, make_regressor, train_briefly


def test_schedules() -> None:
    cosine = Recipe(lr=1, warmup_epochs=2)
    assert [cosine.rate(e, 10) for e in (1, 2, 6, 10)] == pytest.approx([0.5, 1, 0.5, 0])
    step = Recipe(lr=1, schedule="step")
    assert [step.rate(e, 4) for e in (1, 2, 3)] == pytest.approx([1, 0.1, 0.01])
    assert Recipe(lr=0.2, schedule="constant").rate(3, 4) == 0.2


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_optimizers(two_classes: Pair, optimizer: Any) -> None:
    model = make_classifier()
    records = train_briefly(model, two_classes, recipe=Recipe(optimizer=optimizer, lr=0.01, momentum=0), epochs=3)
    assert records[-1].train_loss < records[0].train_loss


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgdd"},
        {"schedule": "cos"},
        {"lr": 0},
        {"batch_size": 0},
        {"momentum": 1},
        {"distill": 1.5},
        {"temperature": 0},
        {"weight_decay": -1},
        {"warmup_epochs": -1},
        {"precision": "fp16"},
        {"ema": 1},
        {"patience": 0},
    ],
)
def test_illegal_recipes(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(options.values())))):
        Recipe(**options)


def test_averaged_weights_follow_the_formula(two_classes: Pair) -> None:
    """After one step: the average of the weights before and after it, with the decay of the warm-up."""
    model, plain, start = make_classifier(), make_classifier(), make_classifier()
    options = {"epochs": 1, "recipe": Recipe(batch_size=101, schedule="constant")}
    averaged = Recipe(batch_size=101, schedule="constant", ema=0.5)
    record = train_briefly(model, two_classes, two_classes, epochs=1, recipe=averaged)[0]
    train_briefly(plain, two_classes, **options)
    decay = min(0.5, 2 / 11)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            expected = decay * start.state_dict()[name] + (1 - decay) * plain.state_dict()[name]
            torch.testing.assert_close(value, expected)
    assert record.validation_accuracy == accuracy(model, two_classes)


def test_early_stop_keeps_the_last_epoch(two_classes: Pair) -> None:
    """With swapped validation targets, validation gets worse while training improves."""
    model, reference = make_classifier(), make_classifier()
    recipe = Recipe(lr=0.05, batch_size=16, patience=2, schedule="constant")
    records = train_briefly(model, two_classes, (two_classes[0], 1 - two_classes[1]), epochs=20, recipe=recipe)
    best = best_epoch(records)
    assert best is not None and len(records) == best.epoch + 2 < 20
    train_briefly(
        reference, two_classes, epochs=len(records), recipe=Recipe(lr=0.05, batch_size=16, schedule="constant")
    )
    assert equal_states(model, reference)
    assert best_epoch(train_briefly(make_classifier(), two_classes)) is None
    with pytest.raises(ConfigError, match="patience=2 needs the validation accuracy"):
        train_briefly(make_classifier(), two_classes, recipe=recipe)


def test_mixed_precision_keeps_weights_in_fp32(two_classes: Pair) -> None:
    model, single = make_classifier(), make_classifier()
    recipe = Recipe(lr=0.05, batch_size=16, precision="bf16")
    records = train_briefly(model, two_classes, two_classes, epochs=6, recipe=recipe, teacher=make_classifier())
    train_briefly(
        single, two_classes, two_classes, epochs=6, recipe=Recipe(lr=0.05, batch_size=16), teacher=make_classifier()
    )
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert records[-1].train_loss < records[0].train_loss and not equal_states(model, single)


def test_patience_uses_the_loss_without_an_accuracy(left_brightness: Pair) -> None:
    recipe = Recipe(lr=0.05, batch_size=16, patience=2, schedule="constant")
    negated = left_brightness[0], -left_brightness[1]
    records = train_briefly(make_regressor(), left_brightness, negated, epochs=30, recipe=recipe, loss=F.mse_loss)
    best = best_epoch(records)
    assert best is not None and len(records) == best.epoch + 2 < 30


def test_patience_uses_the_users_loss(two_classes: Pair) -> None:
    """For embeddings, the index of the largest value is not a class."""

    def spread(out: Tensor, labels: Tensor) -> Tensor:
        centres = torch.stack([out[labels == k].mean(0) for k in (0, 1)])
        return (out - centres[labels]).square().mean() - (centres[0] - centres[1]).square().mean().clamp_max(1)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 6))
    with torch.no_grad():
        model[1].bias[5] += 100  # the largest value for all images, so that the "accuracy" is always 0
    recipe = Recipe(lr=0.003, batch_size=101, patience=2, schedule="constant")
    records = train_briefly(model, two_classes, two_classes, epochs=8, recipe=recipe, loss=spread)
    losses = [r.validation_loss for r in records]
    assert losses == sorted(losses, reverse=True) and len(records) == 8
    best = best_epoch(records, by_loss=True)
    assert best is not None and best.epoch == 8 and {r.validation_accuracy for r in records} == {0}


def test_best_epoch_ignores_losses_that_are_not_finite() -> None:
    records = [EpochRecord(k + 1, 1.0, None, 0.1, 1.0, loss) for k, loss in enumerate((math.nan, 0.5, 0.7))]
    best = best_epoch(records)
    assert best is not None and best.epoch == 2
