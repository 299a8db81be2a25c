"""Parametric continuous convolution: the formula, its symmetries, and pruning on point sets."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deap_prune as dp
from deap_prune import zoo
from deap_prune.data import Splits, load_data
from deap_prune.errors import ModelError
from deap_prune.structure import layers
from deap_prune.structure.inputs import as_call
from deap_prune.structure.tracing.fvcore_count import count_flops
from tests.helpers.networks import Example
from tests.helpers.pruning import draw_masks, gap, outputs_masked, outputs_slim, prepare

Batch = tuple[tuple[Tensor, Tensor], Tensor]


def point_cloud(n: int = 2, channels: int = 3, points: int = 7, dims: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(n, channels, points, dtype=torch.float64), torch.randn(n, points, dims, dtype=torch.float64)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_formula(dims: int) -> None:
    """Pair by pair, with the kernel g written out as a matrix for each difference of coordinates."""
    layer = zoo.ContinuousConv(3, 5, radius=1.5, hidden=6, dims=dims).double()
    torch.nn.init.normal_(layer.bias)
    x, points = point_cloud(dims=dims)
    wanted = layer.bias.view(-1, 1).repeat(2, 1, 7)
    pairs = 0
    for n in range(2):
        for i in range(7):
            for j in range(7):
                difference = points[n, i] - points[n, j]
                if difference.norm() <= 1.5:
                    kernel = layer.weight @ F.relu(layer.hidden.weight @ difference + layer.hidden.bias)
                    wanted[n, :, i] += kernel @ x[n, :, j]
                    pairs += 1
    assert 14 < pairs < 98  # some neighbours, not all
    assert torch.allclose(layer(x, points), wanted, rtol=1e-9)


def test_symmetries() -> None:
    """Points have no order, and where the set lies does not matter; points out of reach don't either."""
    layer = zoo.ContinuousConv(3, 5).double()
    x, points = point_cloud()
    y, order = layer(x, points), torch.randperm(7)
    assert torch.allclose(layer(x[:, :, order], points[:, order]), y[:, :, order])
    assert torch.allclose(layer(x, points + torch.tensor([30.0, -4.0])), y)
    more = torch.cat([x, torch.ones(2, 3, 1)], dim=2), torch.cat([points, torch.full((2, 1, 2), 100.0)], dim=1)
    assert torch.allclose(layer(*more)[:, :, :7], y)


def test_reset_draws_anew() -> None:
    layer = zoo.ContinuousConv(3, 5)
    before = [p.clone() for p in layer.parameters()]
    layer.reset_parameters()
    changed = [not torch.equal(p, old) for p, old in zip(layer.parameters(), before, strict=True)]
    assert changed == [True, False, True, True] and not layer.bias.any()  # weight, bias, and the hidden layer's two


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: zoo.ContinuousConv(0, 3), r"ContinuousConv\(0, 3, radius=2.0, hidden=16, dims=2\): give positive"),
        (lambda: zoo.ContinuousConv(1, 3, radius=-1), "give positive numbers"),
        (lambda: zoo.PointClassifier(widths=()), r"widths=\(\), num_classes=10: give at least one width"),
        (lambda: zoo.brightest_points(torch.zeros(1, 1, 4, 4), 17), "17 points of 4x4 pixels; give 1 to 16"),
    ],
)
def test_what_cannot_be_built(build: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build()  # type: ignore[operator]


def test_brightest_points() -> None:
    images = torch.arange(12.0).view(1, 1, 3, 4).repeat(2, 2, 1, 1)
    images[1] = -images[1]
    features, points = zoo.brightest_points(images, 3)
    assert features.shape == (2, 2, 3) and points.dtype == images.dtype
    assert points[0].tolist() == [[2, 3], [2, 2], [2, 1]] and features[0, 1].tolist() == [11, 10, 9]
    assert points[1].tolist() == [[0, 0], [0, 1], [0, 2]]


# ------------------------------------------------------------------ pruning
def batches(pair: tuple[Tensor, Tensor], size: int) -> list[Batch]:
    features, points = zoo.brightest_points(pair[0], 20)
    parts = zip(features.split(size), points.split(size), pair[1].split(size), strict=True)
    return [((f, p), y) for f, p, y in parts]


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_data(format="digits")


def test_the_same_verbs(splits: Splits) -> None:
    """Trained, searched at half the FLOPs, and slimmed as judged: on pairs (features, points)."""
    torch.manual_seed(0)
    model = zoo.PointClassifier(widths=(12, 16))
    dp.finetune(model, batches(splits.train, 32), epochs=3, recipe=dp.Recipe(lr=0.1), device="cpu", progress=False)
    validation = batches(splits.validation, 120)
    example = validation[0][0]
    result = dp.search(
        model,
        example,
        calibration=batches(splits.calibration, 120)[:2],
        validation=validation,
        objectives=("accuracy",),
        max_flops=0.5,
        population=6,
        generations=1,
        device="cpu",
        progress=False,
    )
    assert [group.name for group in result.space.groups] == ["convs.0", "convs.1"]
    assert dp.accuracy(model, validation, device="cpu") > 0.8
    assert result.best.values["accuracy"] > 0.3 and result.best.flops <= 0.5 * result.space.flops
    small = result.slim(result.best)
    assert result.best.flops == count_flops(small, as_call(tuple(x[:1] for x in example)))[0]
    assert result.best.values["accuracy"] == pytest.approx(dp.accuracy(small, validation, device="cpu"))
    assert [conv.in_channels for conv in small.convs][1] == small.convs[0].out_channels < 12  # type: ignore[union-attr]
    with result.evaluator.masked(result.best.masks) as network, torch.no_grad():
        assert torch.allclose(network(*example), small(*example), atol=1e-4)


class SpreadNorm(nn.Module):
    """Looks at all its channels at once, and takes the points as well."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor, points: Tensor) -> Tensor:
        return x / x.norm(dim=1, keepdim=True) * points.std(dim=1).mean(dim=1).view(-1, 1, 1)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm, self.conv2 = zoo.ContinuousConv(3, 8), SpreadNorm(8), zoo.ContinuousConv(8, 6)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor, points: Tensor) -> Tensor:
        x = self.norm(F.relu(self.conv1(x, points)), points=points)
        return self.fc(F.relu(self.conv2(x, points)).mean(2))


def test_a_layer_of_your_own_that_takes_more_than_features(monkeypatch: pytest.MonkeyPatch) -> None:
    def describe(layer: SpreadNorm) -> dp.LayerSpec:
        n = layer.channels
        return dp.LayerSpec(in_channels=n, out_channels=n, widths={"channels": "out"}, coupled=1, whole=True)

    monkeypatch.setitem(layers._TYPES, SpreadNorm, describe)
    torch.manual_seed(0)
    _, _, space, random, call = prepare(Example(Normed(), (torch.randn(1, 3, 7), torch.randn(1, 7, 2))))
    assert [group.name for group in space.groups] == ["conv1", "conv2"]
    for seed in range(4):
        masks = draw_masks(space, seed)
        assert gap(outputs_slim(random, space, masks, call), outputs_masked(random, space, masks, call)) < 1e-9
