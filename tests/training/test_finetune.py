"""Fine-tuning in place: learning, distillation, frozen parameters, batches and errors."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Digits
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.errors import ConfigError, DataError, ModelError
from deap_prune.training import Recipe, accuracy, finetune
from deap_prune.training.evaluation import loss_and_accuracy
from tests.helpers.training import Pair, equal_states, make_classifier, train_briefly


def test_frozen_norm_keeps_its_statistics(two_classes: Pair) -> None:
    model = make_classifier()
    for frozen in (True, False):
        model[1].requires_grad_(not frozen)
        before = model[1].running_mean.clone()
        train_briefly(model, two_classes)
        assert torch.equal(model[1].running_mean, before) == frozen


def test_training_lowers_the_loss_and_records_it(two_classes: Pair) -> None:
    model = make_classifier()
    records = train_briefly(model, two_classes, two_classes, epochs=6, recipe=Recipe(lr=0.05, batch_size=16))
    assert [r.epoch for r in records] == [1, 2, 3, 4, 5, 6]
    assert records[-1].train_loss < 0.6 * records[0].train_loss
    assert records[-1].validation_accuracy == accuracy(model, two_classes) > 0.9
    assert records[0].lr > records[-1].lr > 0
    assert all(r.seconds > 0 for r in records)
    assert not any(module.training for module in model.modules())


def test_equal_seeds_give_equal_weights(two_classes: Pair) -> None:
    nets = [make_classifier() for _ in range(3)]
    for net, seed in zip(nets, (5, 5, 6), strict=True):
        torch.rand(1)  # the global random state has no effect
        before = torch.random.get_rng_state()
        train_briefly(net, two_classes, seed=seed, augment=True)
        assert torch.equal(torch.random.get_rng_state(), before)
    assert equal_states(nets[0], nets[1])
    assert not equal_states(nets[0], nets[2])


def test_validation_data_does_not_change_the_weights(two_classes: Pair) -> None:
    with_validation, without = make_classifier(), make_classifier()
    train_briefly(with_validation, two_classes, (two_classes[0], 1 - two_classes[1]))
    assert train_briefly(without, two_classes)[0].validation_accuracy is None
    assert equal_states(with_validation, without)


def test_batches_instead_of_tensors(two_classes: Pair) -> None:
    batches = list(zip(two_classes[0].split(20), two_classes[1].split(20), strict=True))
    model = make_classifier()
    assert len(train_briefly(model, batches, batches)) == 2
    assert accuracy(model, batches) == accuracy(model, two_classes) == accuracy(model, two_classes, batch_size=7)
    two = batches[:2]  # a list of two batches is not a pair of tensors
    assert len(train_briefly(model, two, two)) == 2


def test_no_batch_has_a_single_sample() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.Flatten())
    train_briefly(model, (torch.randn(17, 1, 2, 2), torch.zeros(17, dtype=torch.int64)), recipe=Recipe(batch_size=16))


def test_distillation_follows_the_formula(two_classes: Pair) -> None:
    student, teacher = make_classifier()[4:], make_classifier()[4:]
    flat = two_classes[0].repeat(1, 4, 1, 1), two_classes[1]
    nn.init.normal_(teacher[1].weight)
    teacher.train()
    teacher_before = copy.deepcopy(teacher)
    z, t = student(flat[0]), teacher(flat[0])
    p, q = F.softmax(t / 3, 1), F.softmax(z / 3, 1)
    expected = 0.3 * F.cross_entropy(z, flat[1]) + 0.7 * 9 * (p * (p / q).log()).sum(1).mean()
    recipe = Recipe(temperature=3, distill=0.7, batch_size=101)
    record = train_briefly(student, flat, epochs=1, teacher=teacher, recipe=recipe)[0]
    assert record.train_loss == pytest.approx(expected.item(), rel=1e-5)
    assert equal_states(teacher_before, teacher)
    assert all(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_from_scratch_resets_all_weights(two_classes: Pair) -> None:
    a, b = make_classifier(), make_classifier()
    train_briefly(b, two_classes, recipe=Recipe(lr=0.1))
    for net in (a, b):
        train_briefly(net, two_classes, from_scratch=True, seed=2)
    assert equal_states(a, b)


def test_from_scratch_refuses_a_module_without_reset_parameters(two_classes: Pair) -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2), Scale())
    before = copy.deepcopy(model)
    with pytest.raises(ModelError, match=r"'2' \(Scale\)"):
        train_briefly(model, two_classes, from_scratch=True)
    assert equal_states(before, model)


def test_frozen_parameters_do_not_change(two_classes: Pair) -> None:
    model = make_classifier()
    model[0].requires_grad_(False)
    before = copy.deepcopy(model[0])
    train_briefly(model, two_classes)
    assert equal_states(before, model[0])
    with pytest.raises(ModelError, match="requires_grad"):
        train_briefly(model.requires_grad_(False), two_classes)


def test_forward_and_augment_callables(two_classes: Pair) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_classifier()

        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"logits": self.net(batch["x"])}

    def forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
        return model({"x": batch[0]})["logits"], batch[1]

    def darken(inputs: Tensor, generator: torch.Generator) -> Tensor:
        calls.append(len(inputs))
        return inputs * torch.rand((), generator=generator)

    calls: list[int] = []
    model = Wrapped()
    train_briefly(model, two_classes, two_classes, forward=forward, augment=darken)
    assert sum(calls) == 2 * 101
    assert 0 <= accuracy(model, two_classes, forward=forward) <= 1


def test_accuracy_and_modes() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(2), nn.Identity())
    model[1].eval()
    assert accuracy(model, (torch.tensor([[1.0, 0], [0, 1], [1, 0]]), torch.tensor([0, 1, 1]))) == pytest.approx(2 / 3)
    assert [m.training for m in model] == [True, False, True]


def test_errors(two_classes: Pair) -> None:
    inputs, targets = two_classes
    for broken in (
        (inputs, targets[:-1]),
        (inputs[:0], targets[:0]),
        (inputs, targets + 1),
        (inputs, targets.float()),
        [],
        (batch for batch in [two_classes]),
    ):
        with pytest.raises(DataError):
            train_briefly(make_classifier(), broken)
    with pytest.raises(DataError, match="empty"):
        accuracy(make_classifier(), [])
    model = make_classifier()
    with pytest.raises(ModelError, match="teacher is the network itself"):
        train_briefly(model, two_classes, teacher=model)
    with pytest.raises(ModelError, match=r"teacher gives \(.*10\)"):
        train_briefly(model, two_classes, teacher=nn.Sequential(nn.Flatten(), nn.Linear(16, 10)))
    with pytest.raises(ModelError, match="forward="):
        accuracy(nn.Identity(), two_classes)
    with pytest.raises(ConfigError, match="epochs is 0"):
        train_briefly(model, two_classes, epochs=0)
    with pytest.raises(ConfigError, match="epochs=2 with warmup_epochs=2"):
        train_briefly(model, two_classes, epochs=2, recipe=Recipe(warmup_epochs=2))


def test_a_loss_that_is_not_finite_is_an_error(two_classes: Pair) -> None:
    model = make_classifier()
    with pytest.raises(ModelError, match="lr="):
        train_briefly(model, (two_classes[0] * math.nan, two_classes[1]))
    assert not model.training


def test_progress_shows_loss_and_accuracy(two_classes: Pair, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "deap_prune.progress"):
        finetune(make_classifier(), two_classes, two_classes, epochs=1)
        assert "loss" in caplog.text and "accuracy" in caplog.text
        caplog.clear()
        train_briefly(make_classifier(), two_classes)
        assert not caplog.text


def test_the_defaults_keep_what_refinement_rebuilt(digits: Digits) -> None:
    """One epoch from the default rate improves a refined network; from fifty times that rate it does not."""
    data = {"calibration": digits.calibration, "validation": digits.validation}
    evaluate = dp.Evaluator(digits.model, digits.space, **data, objectives=("loss",), refine=True, device="cpu")
    masks = dp.Masks.random(digits.space, keep=0.6, seed=0)
    losses: dict[float | None, float] = {}
    for rate in (None, Recipe().lr, 50 * Recipe().lr):
        network = evaluate.slim(masks)
        if rate is not None:
            recipe, teacher = Recipe(lr=rate), digits.model
            train_briefly(network, digits.splits.train, epochs=1, recipe=recipe, teacher=teacher)
        losses[rate] = loss_and_accuracy(network, digits.validation, device="cpu")[0]
    assert losses[Recipe().lr] < losses[None] < losses[50 * Recipe().lr]
