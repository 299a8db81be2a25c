"""The networks: parameter counts, state-dict layouts and the parameter-free shortcut."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deap_prune import zoo
from deap_prune.errors import ModelError

# 9 weights for each pair of channels, 2 of batch norm for each filter, and 512 * 100 + 100 of the classifier.
WIDTHS = [3, 64, 64, 128, 128, *[256] * 4, *[512] * 8]
VGG19 = sum(9 * a * b + 2 * b for a, b in itertools.pairwise(WIDTHS)) + 51_300


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (zoo.resnet56(100, "B"), 861_620),
        (zoo.resnet20(100, "B"), 278_324),
        (zoo.resnet56(10, "B"), 855_770),
        (zoo.resnet56(10, "A"), 853_018),
        (zoo.resnet20(10, "A"), 269_722),
        (zoo.vgg19(100), VGG19),
    ],
)
def test_parameter_counts(model: nn.Module, parameters: int) -> None:
    assert count(model) == parameters


def test_named_factories_are_the_general_one() -> None:
    for make, depth, classes, shortcut in [
        (zoo.cifar10_resnet20, 20, 10, "A"),
        (zoo.cifar10_resnet56, 56, 10, "A"),
        (zoo.cifar100_resnet20, 20, 100, "B"),
        (zoo.cifar100_resnet56, 56, 100, "B"),
    ]:
        assert str(make()) == str(zoo.cifar_resnet(depth, classes, shortcut))


def test_state_dict_layouts() -> None:
    def layout(shortcut: str) -> set[str]:
        keys = zoo.resnet20(10, shortcut).state_dict()
        return {key.rsplit(".", 1)[0] for key in keys}

    def expected(head: str, extra: list[str]) -> set[str]:
        parts = ["conv1", "bn1", "conv2", "bn2"]
        blocks = {f"layer{s}.{i}.{part}" for s in (1, 2, 3) for i in range(3) for part in parts}
        return {"conv1", "bn1", head, *blocks, *extra}

    downsample = [f"layer{stage}.0.downsample.{i}" for stage in (2, 3) for i in (0, 1)]
    assert layout("A") == expected("linear", [])
    assert layout("B") == expected("fc", downsample)


@pytest.mark.parametrize(("channels", "out", "stride", "size"), [(16, 32, 2, 8), (3, 3, 1, 5), (4, 10, 3, 7)])
def test_pad_shortcut_is_slice_and_pad(channels: int, out: int, stride: int, size: int) -> None:
    x = torch.randn(2, channels, size, size)
    side = (out - channels) // 2
    wanted = F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, side, side))
    assert torch.equal(zoo.PadShortcut(channels, out, stride)(x), wanted)


def test_pad_shortcut_follows_any_source() -> None:
    shortcut = zoo.PadShortcut(3, 5, 1)
    shortcut.source = torch.tensor([2, -1, 0, 0])
    x = torch.randn(2, 3, 4, 4)
    x[0, 1] = torch.inf  # a channel that nothing reads must not leak into the zero channel
    y = shortcut(x)
    assert torch.equal(y[:, [0, 2, 3]], x[:, [2, 0, 0]])
    assert torch.equal(y[:, 1], torch.zeros(2, 4, 4))
    assert not shortcut.state_dict()
    assert torch.equal(copy.deepcopy(shortcut).source, shortcut.source)


def test_pad_shortcut_passes_gradients() -> None:
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    zoo.PadShortcut(2, 4, 2)(x).sum().backward()
    wanted = torch.zeros(1, 2, 4, 4)
    wanted[:, :, ::2, ::2] = 1
    assert x.grad is not None
    assert torch.equal(x.grad, wanted)


@pytest.mark.parametrize(
    ("model", "shape", "classes"),
    [
        (zoo.cifar_resnet(8, 7, "A"), (2, 3, 32, 32), 7),
        (zoo.cifar_resnet(8, 7, "B"), (2, 3, 32, 32), 7),
        (zoo.vgg16(5), (2, 3, 32, 32), 5),
        (zoo.digits_resnet(), (2, 1, 8, 8), 10),
    ],
)
def test_forward_shapes_and_tracing(model: nn.Module, shape: tuple[int, ...], classes: int) -> None:
    x = torch.randn(shape)
    model.eval()
    y = model(x)
    assert y.shape == (2, classes)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), y)


def test_vgg_layout() -> None:
    model = zoo.vgg19(100)
    assert sum(isinstance(m, nn.Conv2d) for m in model.features) == 16
    assert sum(isinstance(m, nn.MaxPool2d) for m in model.features) == 4
    assert model.classifier.out_features == 100


@pytest.mark.parametrize(
    "build",
    [
        lambda: zoo.cifar_resnet(21),
        lambda: zoo.cifar_resnet(2),
        lambda: zoo.cifar_resnet(20, 10, "C"),  # type: ignore[arg-type]
        lambda: zoo.resnet20(0),
        lambda: zoo.CifarVGG((2, 2, 3), 10),
        lambda: zoo.digits_resnet(width=0),
        lambda: zoo.PadShortcut(8, 4, 2),
    ],
)
def test_what_cannot_be_built(build: object) -> None:
    with pytest.raises(ModelError, match="give"):
        build()  # type: ignore[operator]
