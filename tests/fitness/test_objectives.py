"""Objectives that need more than a mean over samples: mIoU from sums, and those that run the network again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Digits
from sklearn.metrics import jaccard_score
from torch import Tensor, nn
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

import deap_prune as dp
from deap_prune.errors import DataError
from deap_prune.fitness import OBJECTIVES
from deap_prune.fitness.objectives import SHIFTS, batch_values, miou, reduced, shift_consistency

Change = Callable[[Tensor], Tensor]


def never(change: Change) -> Any:
    raise RuntimeError("this objective runs no network")


def value_of(name: str, *batches: tuple[Any, Any]) -> float:
    objective = OBJECTIVES[name]
    return reduced(
        objective, [batch_values(objective, (outputs, targets, None, never)) for outputs, targets in batches]
    )


# ------------------------------------------------------------------ mIoU
@pytest.mark.parametrize("shape", [(6, 5, 7), (9,), (4, 3, 4, 2)])
@pytest.mark.parametrize("left_out", [255, -1])
def test_miou_is_the_mean_jaccard_index(shape: tuple[int, ...], left_out: int) -> None:
    """Over all positions of all batches together, unlike the mean over batches; equal to scikit-learn's value."""
    torch.manual_seed(0)
    scores, targets = torch.randn(shape[0], 4, *shape[1:]), torch.randint(0, 3, shape)
    targets[torch.rand(shape) < 0.2] = left_out
    value = value_of("miou", (scores[:2], targets[:2]), ({"out": scores[2:]}, targets[2:]))
    labelled = targets != left_out
    expected = jaccard_score(
        targets[labelled], scores.argmax(1)[labelled], average="macro", labels=range(4), zero_division=0
    )
    assert value == pytest.approx(float(expected), abs=1e-12)
    apart = [value_of("miou", (scores[part], targets[part])) for part in (slice(0, 2), slice(2, None))]
    assert value != pytest.approx(np.mean(apart), abs=1e-6)


def test_miou_counts_classes_that_occur() -> None:
    targets = torch.tensor([[0, 0, 0, 1]])
    scores = F.one_hot(torch.tensor([[0, 0, 2, 1]]), 5).movedim(-1, 1).float()
    assert value_of("miou", (scores, targets)) == pytest.approx(
        (2 / 3 + 1 + 0) / 3
    )  # class 2 is predicted but absent, 3 and 4 occur nowhere
    assert value_of("miou", (F.one_hot(targets, 5).movedim(-1, 1).float(), targets)) == 1


def test_miou_of_nothing_or_nan_is_nan() -> None:
    """The evaluator replaces NaN by the worst value."""
    scores, targets = torch.randn(2, 3, 4), torch.randint(0, 3, (2, 4))
    assert np.isnan(value_of("miou", (scores, torch.full_like(targets, 255))))
    scores[1, 0, 0] = torch.nan
    assert np.isnan(value_of("miou", (scores, targets)))


def test_miou_message() -> None:
    with pytest.raises(DataError, match=r"labels reach 7; the network has classes 0 to 2 \(mark positions to ignore"):
        miou(torch.randn(1, 3, 2), torch.tensor([[0, 7]]), None)


class Squares:
    """Images made for the test: coloured squares on noise, the label of a pixel is its colour's."""

    def __init__(self, n: int, side: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = 0.3 * torch.randn(n, 3, side, side, generator=generator)
        self.labels = torch.zeros(n, side, side, dtype=torch.int64)
        for i in range(n):
            for label in (1, 2):
                row, column = torch.randint(0, side // 2, (2,), generator=generator).tolist()
                where = (i, slice(row, row + side // 2), slice(column, column + side // 2))
                self.labels[where] = label
                self.images[i, :, where[1], where[2]] += torch.tensor([1.0, 2.0 - label, -1.0]).view(3, 1, 1)
        self.labels[:, :2] = 255  # a border without labels


def test_lraspp_is_searched_for_miou() -> None:
    """torchvision's network as it is: a dict of outputs, auxiliary entries or not, and dense labels."""
    torch.manual_seed(0)
    data = Squares(12, 32)
    model = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    pair = (data.images, data.labels)
    result = dp.search(
        model,
        data.images[:1],
        calibration=pair,
        validation=pair,
        criteria=("l1", "bn_scale"),
        n_clusters=2,
        objectives=("miou", "agreement", "flops"),
        population=2,
        generations=1,
        batch_size=5,
        device="cpu",
        progress=False,
        refine=False,
    )
    assert len(result.space.groups) > 20
    solution = result.front.best(max_flops=0.9)
    with torch.no_grad():
        labels = torch.cat([result.slim(solution)(part)["out"].argmax(1) for part in data.images.tensor_split(3)])
    labelled = data.labels != 255
    expected = jaccard_score(data.labels[labelled], labels[labelled], average="macro")
    assert solution.values["miou"] == pytest.approx(expected, abs=1e-6)
    assert 0 < solution.values["agreement"] < 1e6


# ------------------------------------------------------------------ objectives that run the network again
class Corner(nn.Module):
    """Its label is the sign of one corner pixel, so it depends on the position."""

    def forward(self, x: Tensor) -> Tensor:
        return F.one_hot((x[:, 0, 0, 0] > 0).long(), 10).float()


def test_shift_consistency_by_hand(digits: Digits) -> None:
    """The corner sees the pixel at minus the shift; an image counts only if all five shifts leave its label."""
    images = -torch.ones(8, 1, 8, 8)
    for i, (down, right) in enumerate(SHIFTS[:4]):
        images[i, 0, -down % 8, -right % 8] = 1
    images[5, 0, 4, 4] = 1
    images[6] = 1
    data = (images, torch.zeros(8, dtype=torch.int64))
    evaluate = digits.evaluator(objectives=("shift_consistency", "accuracy"), validation=data, batch_size=3)
    assert evaluate.measure(Corner(), dp.Masks({})) == (4 / 8, 7 / 8)
    assert evaluate.measure(Corner(), dp.Masks({}), data=data) == (4 / 8, 7 / 8)
    assert evaluate.counters.samples == 2 * 8 * (1 + len(SHIFTS))


def test_shift_consistency_of_a_network_that_is_nan(digits: Digits) -> None:
    evaluate = digits.evaluator(objectives=("shift_consistency",))
    broken = evaluate.slim(dp.Masks({}))
    nn.init.constant_(broken.get_parameter("fc.bias"), torch.nan)
    with pytest.warns(UserWarning, match="shift_consistency was nan"):
        assert evaluate.measure(broken, dp.Masks({})) == (0.0,)


@pytest.mark.parametrize(
    ("outputs", "inputs", "message"),
    [
        (torch.randn(2, 3, 4, 4), torch.randn(2, 1, 4, 4), r"not outputs \(2, 3, 4, 4\) of 5 image tensors"),
        (torch.randn(2, 3), torch.randn(2, 7), r"not outputs \(2, 3\) of 0 image tensors"),
    ],
)
def test_shift_consistency_messages(outputs: Tensor, inputs: Tensor, message: str) -> None:
    def rerun(change: Change) -> Tensor:
        change(inputs)
        return outputs

    with pytest.raises(DataError, match=message):
        shift_consistency(outputs, None, None, rerun)


@pytest.fixture
def own_objective() -> Iterator[None]:
    @dp.register_objective("unmoved", maximise=False, worst=1e6, needs_network=True, needs_dense=True)
    def unmoved(outputs: Tensor, targets: Tensor, dense: Tensor, rerun: Callable[[Change], Tensor]) -> Tensor:
        """Distance that twice the contrast moves the outputs, plus the distance that pruning does."""
        changed = rerun(lambda x: 2 * x if x.is_floating_point() else x)
        return (changed - outputs).abs().sum(1) + (dense - outputs).abs().sum(1)

    yield
    OBJECTIVES.remove("unmoved")


@pytest.mark.usefixtures("own_objective")
def test_an_objective_of_your_own_runs_the_network_again(digits: Digits) -> None:
    """It gets the dense network's outputs, and uses the user's own ``forward``; integer targets are not changed."""
    masks, (images, labels) = dp.Masks.random(digits.space, keep=0.7), digits.validation

    def named(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return model(batch["image"]), batch["label"]

    plain = digits.evaluator(objectives=("accuracy", "unmoved"))
    batches = [{"image": x, "label": y} for x, y in zip(images.split(50), labels.split(50), strict=True)]
    x, y = digits.calibration
    own = digits.evaluator(
        objectives=("unmoved",), forward=named, validation=batches, calibration=[{"image": x, "label": y}]
    )
    small = plain.slim(masks)
    with torch.no_grad():
        pruned, changed, dense = small(images), small(2 * images), digits.model(images)
    expected = ((changed - pruned).abs() + (dense - pruned).abs()).sum(1).mean()
    assert plain(masks)[1] == pytest.approx(float(expected), rel=1e-4)
    assert own(masks)[0] == pytest.approx(float(expected), rel=1e-4)


def test_latency_is_measured_on_the_slim_network_and_names_the_device(
    digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a fake clock: a forward pass takes one millisecond per filter of the first layer."""
    seconds, widths = [0.0], []

    def slow(model: nn.Module, batch: Any) -> Any:
        widths.append((model.conv1.out_channels, len(batch[0])))
        seconds[0] += 1e-3 * model.conv1.out_channels
        return model(batch[0]), batch[1]

    monkeypatch.setattr("deap_prune.fitness.objectives.time.perf_counter", lambda: seconds[0])
    for executor in ("slim", "masked"):
        evaluate = digits.evaluator(objectives=("latency", "flops"), forward=slow, executor=executor)
        masks = dp.Masks.random(digits.space, keep=0.5, seed=1)
        widths.clear()
        assert evaluate(masks)[0] == pytest.approx(digits.space.kept_counts(masks)[0])
        timed = [width for width, samples in widths if samples == 16]
        assert timed == [digits.space.kept_counts(masks)[0]] * 18
        assert "cpu" in evaluate.dense["device"] and "threads" in evaluate.dense["device"]
    assert "device" not in digits.evaluator(objectives=("flops",)).dense
    with pytest.raises(DataError, match="validation data is needed"):
        dp.Evaluator(digits.model, digits.space, objectives=("latency",), recalibrate=None)
