"""Fine-tuning for regression, segmentation and other tasks with a loss of the user."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deap_prune.errors import DataError, ModelError, RunError
from deap_prune.training import Recipe, accuracy, best_epoch
from tests.helpers.training import Pair, make_classifier, make_regressor, train_briefly


def test_a_users_loss(left_brightness: Pair) -> None:
    """Training lowers and records it; a mean and one value a sample give the same weights."""
    model, per_sample = make_regressor(), make_regressor()
    options: dict[str, Any] = {"epochs": 6, "recipe": Recipe(lr=0.05, batch_size=16)}
    records = train_briefly(model, left_brightness, left_brightness, loss=F.mse_loss, **options)
    assert records[-1].train_loss < 0.5 * records[0].train_loss
    assert records[-1].validation_accuracy is None
    with torch.no_grad():
        assert records[-1].validation_loss == pytest.approx(
            float(F.mse_loss(model(left_brightness[0]), left_brightness[1]))
        )
    train_briefly(per_sample, left_brightness, loss=lambda out, y: (out - y).square().squeeze(1), **options)
    for a, b in zip(model.parameters(), per_sample.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    best = best_epoch(records)
    assert best is not None and best.validation_loss == min(r.validation_loss or math.inf for r in records)


def test_distillation_for_regression(left_brightness: Pair) -> None:
    """Without class labels, the distillation loss is the squared difference of the outputs."""
    student, teacher = make_regressor(), make_regressor(1)
    z, t = student(left_brightness[0]), teacher(left_brightness[0])
    expected = 0.3 * (z - left_brightness[1]).abs().mean() + 0.7 * (z - t).square().mean()
    recipe = Recipe(distill=0.7, batch_size=101)
    record = train_briefly(student, left_brightness, epochs=1, teacher=teacher, recipe=recipe, loss=F.l1_loss)[0]
    assert record.train_loss == pytest.approx(expected.item(), rel=1e-5)


def test_whole_numbers_for_one_output_are_not_classes(two_classes: Pair) -> None:
    """Counts as targets of one output: its softmax is always 1."""
    student, teacher = make_regressor(), make_regressor(1)
    counts = two_classes[0], two_classes[1].unsqueeze(1)
    z, t = student(counts[0]), teacher(counts[0])
    expected = 0.5 * F.mse_loss(z, counts[1].float()) + 0.5 * (z - t).square().mean()
    options: dict[str, Any] = {"epochs": 1, "recipe": Recipe(batch_size=101)}
    record = train_briefly(student, counts, teacher=teacher, loss=lambda out, y: F.mse_loss(out, y.float()), **options)[
        0
    ]
    assert record.train_loss == pytest.approx(expected.item(), rel=1e-5)


def test_a_users_loss_on_labels_keeps_the_distillation_of_classes(two_classes: Pair) -> None:
    student, teacher = make_classifier()[4:], make_classifier()[4:]
    flat = two_classes[0].repeat(1, 4, 1, 1), two_classes[1]
    nn.init.normal_(teacher[1].weight)
    z, t = student(flat[0]), teacher(flat[0])
    smooth = F.cross_entropy(z, flat[1], label_smoothing=0.1)
    expected = 0.5 * smooth + 0.5 * 16 * F.kl_div((z / 4).log_softmax(1), (t / 4).softmax(1), reduction="batchmean")
    users_loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    records = train_briefly(
        student, flat, flat, epochs=1, teacher=teacher, recipe=Recipe(batch_size=101), loss=users_loss
    )
    assert records[0].train_loss == pytest.approx(expected.item(), rel=1e-5)
    assert records[0].validation_accuracy == accuracy(student, flat)


@pytest.mark.parametrize("with_teacher", [False, True])
def test_maps_of_labels(with_teacher: bool) -> None:
    """Segmentation: outputs in a dict, label 255 ignored; distillation uses all positions."""

    class Maps(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.layer = nn.Conv2d(1, 3, 3, padding=1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": self.layer(x)}

    model, teacher = Maps(0), Maps(1) if with_teacher else None
    x = torch.randn(24, 1, 4, 4)
    y = (x[:, 0] > 0).long()
    y[:, 0] = 255
    z = model(x)["out"]
    expected = F.cross_entropy(z, y, ignore_index=255)
    if teacher is not None:
        p, q = (teacher(x)["out"] / 4).softmax(1), (z / 4).softmax(1)
        expected = 0.5 * expected + 0.5 * 16 * (p * (p / q).log()).sum(1).mean()
    records = train_briefly(model, (x, y), (x, y), teacher=teacher, epochs=5, recipe=Recipe(lr=0.5, batch_size=24))
    assert records[0].train_loss == pytest.approx(expected.item(), rel=1e-5)
    assert records[-1].train_loss < records[0].train_loss and records[-1].validation_accuracy is None
    with torch.no_grad():
        loss = F.cross_entropy(model(x)["out"], y, ignore_index=255)
    assert records[-1].validation_loss == pytest.approx(float(loss), rel=1e-5)


def test_errors_of_other_tasks(left_brightness: Pair, tmp_path: Any) -> None:
    with pytest.raises(DataError, match=r"not class probabilities"):
        train_briefly(make_regressor(), left_brightness)
    with pytest.raises(DataError, match="the loss returns a float; return a tensor"):
        train_briefly(make_regressor(), left_brightness, loss=lambda out, y: 1.0)
    with pytest.raises(ModelError, match=r"the network gives a dict.*or your own loss \(loss=\)"):
        train_briefly(
            make_regressor(), left_brightness, forward=lambda model, batch: ({"y": model(batch[0])}, batch[1])
        )
    with pytest.raises(ModelError, match=r"the teacher gives \(.*, 2\) and the network \(.*, 1\)"):
        train_briefly(make_regressor(), left_brightness, loss=F.mse_loss, teacher=make_classifier())
    train_briefly(make_regressor(), left_brightness, loss=F.mse_loss, state=tmp_path / "state")
    with pytest.raises(RunError, match="belongs to a training with another loss"):
        train_briefly(make_regressor(), left_brightness, loss=F.l1_loss, state=tmp_path / "state")


def test_augment_refuses_maps() -> None:
    x = torch.randn(12, 1, 8, 8)
    model = nn.Conv2d(1, 3, 3, padding=1)
    with pytest.raises(DataError, match="shifts and mirrors inputs alone, and the targets are maps"):
        train_briefly(model, (x, (x[:, 0] > 0).long()), augment=True)
    train_briefly(model, (x, (x[:, 0] > 0).long()), augment=lambda inputs, generator: inputs + 0.1)


def test_batches_are_weighted_by_their_samples(left_brightness: Pair) -> None:
    """Targets may be a list, or missing."""
    x, y = left_brightness
    parts = [slice(0, 3), slice(3, 8), slice(8, 9)]  # batches of several sizes; samples have 0 to 2 boxes
    boxes = [(x[k], [{"boxes": row.expand(i % 3, 1)} for i, row in enumerate(y[k])]) for k in parts]

    def users_loss(out: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
        return torch.stack([(o - t["boxes"]).square().sum() for o, t in zip(out, targets, strict=True)]).mean()

    model = make_regressor()
    with torch.no_grad():
        expected = sum(float(users_loss(model(part), targets)) * len(part) for part, targets in boxes) / 9
    records = train_briefly(model, boxes, boxes, loss=users_loss, epochs=1, recipe=Recipe(lr=1e-9))
    assert records[0].train_loss == pytest.approx(expected, rel=1e-4)
    assert records[0].validation_loss == pytest.approx(expected, rel=1e-4)

    def scalar(model: nn.Module, batch: Tensor) -> tuple[Any, Any]:
        return model(batch).square().mean(), None

    assert train_briefly(make_regressor(), x[:16].split(4), loss=lambda out, _: out, forward=scalar)[-1].train_loss > 0


def test_errors_of_outputs_and_maps(left_brightness: Pair) -> None:
    class Boxed:
        def __init__(self, inside: Tensor) -> None:
            self.inside = inside

    def boxed(model: nn.Module, batch: Any) -> tuple[Any, Any]:
        return Boxed(model(batch[0])), batch[1]

    with pytest.raises(ModelError, match="no tensors to compare with the teacher's"):
        users_loss = lambda out, y: F.mse_loss(out.inside, y)  # noqa: E731
        train_briefly(make_regressor(), left_brightness, loss=users_loss, forward=boxed, teacher=make_regressor(1))
    x = torch.randn(8, 1, 4, 4)
    with pytest.raises(DataError, match="labels reach 5; the network has classes 0 to 2"):
        train_briefly(nn.Conv2d(1, 3, 1), (x, torch.full((8, 4, 4), 5)))
    with pytest.raises(DataError, match=r"not class probabilities.*in Python, give your own loss \(loss=\)"):
        train_briefly(make_regressor(), left_brightness)
