"""Sequential refinement: under the laws, against plain least squares, and by what it gains on trained networks."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Digits
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.errors import ConfigError, DataError
from deap_prune.reconstruction import fit, refine, targets
from deap_prune.reconstruction.fit import fit_layer
from deap_prune.reconstruction.flow import record
from deap_prune.reconstruction.refine import join_batches
from deap_prune.structure.inputs import forward
from tests.helpers.networks import NETWORKS, conv_bn
from tests.helpers.pruning import assert_unchanged, draw_masks, gap, prepared, snapshot


def outputs_of(model: nn.Module, batch: object) -> tuple[list[Tensor], None]:
    return forward(model, batch), None


# ------------------------------------------------------------------ laws
@pytest.mark.parametrize("name", NETWORKS)
def test_masked_is_slim_when_refined(name: str) -> None:
    _, _, space, random, call = prepared(name)
    masks = draw_masks(space, seed=11)
    before = snapshot(random)
    small = refine(random, space, masks, [call], forward=outputs_of, rows=300)
    assert_unchanged(random, before)
    plain = dp.slim(random, space, masks)
    assert {k: v.shape for k, v in small.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    assert type(small) is type(plain) and not small.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in small.modules())
    with torch.no_grad():
        narrow = forward(small, call)
        with dp.masked(random, space, masks, state=small):
            full = forward(random, call)
    assert all(bool(torch.isfinite(x).all()) for x in narrow)
    assert gap(narrow, full) < 1e-9


def test_the_start_is_not_changed_and_one_seed_is_one_network() -> None:
    _, _, space, random, call = prepared("residual")
    masks = dp.Masks.random(space, keep=0.5, seed=0)
    start = dp.slim(random, space, masks)
    before = snapshot(start)
    one, two, other = (
        refine(random, space, masks, [call], start=start, forward=outputs_of, rows=60, seed=seed).state_dict()
        for seed in (0, 0, 1)
    )
    assert_unchanged(start, before)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)


def test_nothing_pruned_nothing_lost(digits: Digits) -> None:
    model = copy.deepcopy(digits.model).double()
    x, y = digits.calibration[0].double(), digits.calibration[1]
    everything = dp.Masks({})
    small = refine(model, digits.space, everything, (x, y))
    assert gap([small(x).detach()], [model.eval()(x).detach()]) < 1e-9


# ------------------------------------------------------------------ the fit
def test_the_last_layer_is_the_least_squares_fit() -> None:
    """Plain network, last layer only: from what the pruned network reads to the dense network's outputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)).double().eval()
    x = torch.randn(2000, 3, 6, 6, dtype=torch.float64)
    space = dp.trace(model, x)
    masks = dp.Masks({"0": np.arange(8) % 2 == 0})
    small = refine(model, space, masks, (x, torch.zeros(2000)), images=2000)
    read = small[:3](x).detach()
    rows = torch.cat([read, read.new_ones(len(read), 1)], dim=1)
    expected = rows @ torch.linalg.lstsq(rows, model(x).detach()).solution
    raw = dp.slim(model, space, masks)(x).detach()
    found = small(x).detach()
    assert float((found - expected).norm() / (raw - expected).norm()) < 0.02  # the ridge's share


# ------------------------------------------------------------------ where paths meet
def test_flow_finds_rectifiers() -> None:
    class Activations(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d, self.e = (nn.Linear(4, 4) for _ in range(5))
            self.act, self.six, self.tanh = nn.ReLU(inplace=True), nn.ReLU6(), nn.Hardtanh()

        def forward(self, x: Tensor) -> Tensor:
            x = self.six(self.b(self.act(self.a(x))))
            x = self.tanh(self.c(x))
            y = self.d(x)
            return self.e(F.relu(y) + y)

    model = Activations()
    flow = record(model, lambda: model(torch.randn(2, 4)))
    numbers = {name: flow.call(name) for name in "abcde"}
    assert [name for name, number in numbers.items() if number is not None and flow.rectified(number)] == ["a", "b"]


class Block(nn.Module):
    """A residual block that adds in place, after its shortcut has run, as torchvision writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.fc = conv_bn(3, 6), nn.Sequential(Block(), Block()), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


def test_flow_finds_normalisations_and_additions() -> None:
    model = Stack().eval()
    flow = record(model, lambda: model(torch.randn(2, 3, 6, 6)))
    assert flow.norm_after(model, "blocks.0.conv2") == "blocks.0.bn2"
    assert flow.norm_after(model, "fc") is None
    norm, stem = flow.call("blocks.0.bn2"), flow.call("stem.1")
    assert norm is not None and stem is not None
    meeting = flow.meeting(norm)
    assert meeting is not None and flow.steps[meeting[0]].name == "add_"
    assert flow.steps[meeting[1]].name == "relu" and meeting[1] == stem + 1
    assert flow.meeting(stem) is None


@pytest.mark.parametrize("sequence_length", [8, 5])
def test_flow_wants_the_channels_on_the_same_dimension(sequence_length: int) -> None:
    """A Linear counts its channels last, a BatchNorm1d second: on (samples, channels, length) they differ."""
    model = nn.Sequential(nn.Linear(4, sequence_length), nn.BatchNorm1d(8)).eval()
    flow = record(model, lambda: model(torch.randn(2, 8, 4)))
    assert flow.norm_after(model, "0") is None


def test_the_shortcuts_error_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second block is given a shortcut that is off by what the first block lost, and corrects it."""
    monkeypatch.setattr(targets, "LEAST_ROWS", 100_000)
    torch.manual_seed(0)
    model = Stack().double().eval()
    x = torch.randn(60, 3, 12, 12, dtype=torch.float64)
    space = dp.trace(model, x)
    inner = [g for g in space.groups if g.name.endswith("conv1")]
    masks = dp.Masks({g.name: np.arange(g.size) < 3 for g in inner})
    small = refine(model, space, masks, (x, torch.zeros(60)), rows=100_000)

    def error(network: nn.Module, depth: int) -> float:
        stream, wanted = F.relu(network.stem(x)), F.relu(model.stem(x))
        with torch.no_grad():
            return float((network.blocks[:depth](stream) - model.blocks[:depth](wanted)).square().mean())

    ignoring = copy.deepcopy(small)  # the second block's last layer fitted to its own dense output instead
    block, dense = ignoring.blocks[1], model.blocks[1]
    with torch.no_grad():
        given, meant = ignoring.blocks[:1](F.relu(ignoring.stem(x))), model.blocks[:1](F.relu(model.stem(x)))
        h = F.relu(block.bn1(block.conv1(given)))
        wanted = dense.bn2(dense.conv2(F.relu(dense.bn1(dense.conv1(meant)))))
        patches = F.unfold(h, 3, padding=1).transpose(1, 2).reshape(1, -1, h.shape[1] * 9)
        fit_layer(block.conv2, block.bn2, patches, wanted.movedim(1, -1).reshape(-1, 6))
    assert error(small, 2) < 0.97 * error(ignoring, 2)
    assert error(small, 2) < error(dp.slim(model, space, masks), 2)


# ------------------------------------------------------------------ quality
def held_out_error(model: nn.Module, small: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((small(x) - model(x)).square().mean())


class MobileNet(nn.Module):
    """Two inverted-residual blocks for digits, the second with its shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(1, 12)
        self.one = self.block(12, 36, 16, stride=2)
        self.two = self.block(16, 48, 16)
        self.fc = nn.Linear(16, 10)

    @staticmethod
    def block(n_in: int, wide: int, n_out: int, stride: int = 1) -> nn.Sequential:
        expand, depth = conv_bn(n_in, wide, 1), conv_bn(wide, wide, stride=stride, groups=wide)
        return nn.Sequential(expand, nn.ReLU6(), depth, nn.ReLU6(), conv_bn(wide, n_out, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(F.relu6(self.stem(x)))
        return self.fc((x + self.two(x)).mean((2, 3)))


def plain_vgg() -> nn.Module:
    widths = (1, 16, 24, 32, 32)
    layers = [nn.Sequential(conv_bn(i, o), nn.ReLU()) for i, o in pairwise(widths)]
    layers.insert(2, nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def densely() -> nn.Module:
    class Concat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = conv_bn(1, 12), conv_bn(12, 16), conv_bn(28, 20)
            self.fc = nn.Linear(48, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(F.relu(self.stem(x)), 2)
            x = torch.cat([x, F.relu(self.a(x))], dim=1)
            return self.fc(torch.cat([x, F.relu(self.b(x))], dim=1).mean((2, 3)))

    return Concat()


@pytest.mark.parametrize("make", [plain_vgg, MobileNet, densely], ids=["plain", "depthwise", "concat"])
def test_refining_gains_on_new_images(digits: Digits, make: Any) -> None:
    """Against re-estimated BN statistics, by the distance to the dense network's outputs on images not seen."""
    torch.manual_seed(0)
    model = make()
    recipe = dp.Recipe(lr=0.1, batch_size=64)
    dp.finetune(model, digits.splits.train, epochs=4, recipe=recipe, device="cpu", progress=False)
    model.eval()
    space = dp.trace(model, digits.example)
    masks = dp.Masks.random(space, keep=0.5, seed=0)
    x, y = digits.splits.train[0][:500], digits.splits.train[1][:500]
    data = {"calibration": (x, y), "validation": digits.validation}
    start = dp.Evaluator(model, space, **data, compensate=None, device="cpu").slim(masks)
    small = refine(model, space, masks, (x, y))
    before, after = (held_out_error(model, net, digits.validation[0]) for net in (start, small))
    assert after < 0.5 * before
    accuracy = [dp.accuracy(net, digits.validation, device="cpu") for net in (start, small)]
    assert accuracy[1] > accuracy[0]


def test_looking_through_rectifiers_gains_on_new_images(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trained network, 40 % of each group kept, by the distance of the logits, over eight draws of filters.

    On networks trained from six seeds they are 7 to 16 % closer together; a single draw may be further off.
    """
    errors = {}
    for rounds in (0, fit.ROUNDS):
        monkeypatch.setattr(fit, "ROUNDS", rounds)
        masks = [dp.Masks.random(digits.space, keep=0.4, seed=seed) for seed in range(8)]
        small = [refine(digits.model, digits.space, m, digits.calibration) for m in masks]
        errors[rounds] = [held_out_error(digits.model.eval(), net, digits.validation[0]) for net in small]
    before, after = errors.values()
    assert sum(after) < 0.95 * sum(before), errors


# ------------------------------------------------------------------ data and errors
def test_batches_are_joined() -> None:
    batches = [
        ({"x": torch.arange(3), "gain": 2.0}, torch.zeros(3)),
        ({"x": torch.arange(3, 8), "gain": 2.0}, torch.ones(5)),
    ]
    inputs, targets = join_batches(batches, 5)
    assert inputs["x"].tolist() == [0, 1, 2, 3, 4] and inputs["gain"] == 2.0 and targets.tolist() == [0, 0, 0, 1, 1]
    assert join_batches(batches, 100)[0]["x"].tolist() == list(range(8))


class Fickle(nn.Module):
    """Takes another way when its layers are narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.n, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h = F.relu(h) if h.shape[1] > 5 else (h + h.abs()) / 2
        return self.c(h + self.n(self.b(h)))


def test_errors(digits: Digits) -> None:
    model, space, masks = digits.model, digits.space, dp.Masks({})
    with pytest.raises(ConfigError, match=r"images=1.*at least 2"):
        refine(model, space, masks, digits.calibration, images=1)
    with pytest.raises(ConfigError, match=r"refine_memory=0.*1 \(GB\) is the default"):
        refine(model, space, masks, digits.calibration, refine_memory=0)
    with pytest.raises(DataError, match="calibration is empty"):
        refine(model, space, masks, [])


def test_a_layer_to_which_narrow_networks_take_another_way_stays() -> None:
    """A search must not lose its front to a network that looks at its own shapes."""
    torch.manual_seed(0)
    fickle, x = Fickle(), torch.randn(30, 4)
    space = dp.trace(fickle, x)
    masks = dp.Masks({"a": np.arange(6) < 3})
    start, refined = dp.slim(fickle, space, masks), refine(fickle, space, masks, (x, torch.zeros(30)))
    assert all(torch.equal(a, b) for a, b in zip(start.b.parameters(), refined.b.parameters(), strict=True))
    assert not torch.equal(start.c.weight, refined.c.weight)
    read: list[Tensor] = []
    refined.n.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    refined(x)
    torch.testing.assert_close(refined.n.running_mean, read[0].mean(0))
