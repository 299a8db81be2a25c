"""Norms over channels that are written by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deap_prune as dp
from tests.helpers.networks import IMAGE, conv
from tests.structure.laws import check_laws


class LayerNorm2d(nn.Module):
    """Mean and variance over channels, by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).square().mean(1, keepdim=True)
        return (x - mean) / (variance + 1e-6).sqrt() * self.weight[:, None, None] + self.bias[:, None, None]


class RMSNorm2d(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6) * self.scale


class GRN(nn.Module):
    """Global response normalisation (ConvNeXt V2), channels first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(1, width, 1, 1)), nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        response = x.norm(dim=(2, 3), keepdim=True)
        return self.gamma * (x * response / (response.mean(1, keepdim=True) + 1e-6)) + self.beta + x


class FrozenBatchNorm2d(nn.Module):
    """As in DETR: buffers only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale.view(1, -1, 1, 1) + (self.bias - self.running_mean * scale).view(1, -1, 1, 1)


class OwnNorm(LayerNorm2d):
    """The same under a name that is not known."""


class Body(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem, self.norm, self.up, self.down = conv(3, 8), norm(8), conv(8, 12), conv(12, 8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc((x + self.down(F.relu(self.up(self.norm(x))))).mean((2, 3)))


@pytest.mark.parametrize("norm", [LayerNorm2d, RMSNorm2d, GRN, FrozenBatchNorm2d])
def test_known_by_name(norm: Callable[[int], nn.Module]) -> None:
    space = check_laws(Body(norm), torch.randn(IMAGE))
    assert [group.name for group in space.groups] == ["stem", "up"]


def test_others_are_named_with_the_way_out() -> None:
    space = dp.trace(Body(OwnNorm), torch.randn(IMAGE))
    assert [group.name for group in space.groups] == ["stem", "up"]  # a subclass of a known one

    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.linalg.svdvals(x.movedim(1, -1)).sum()

    space = dp.trace(Body(lambda width: Own()), torch.randn(IMAGE))
    reason = next(r.reason for r in space.refused if r.layer == "stem")
    assert reason == (
        "is read by '_linalg_svd', which can't be narrowed (in 'norm', Own; describe it: @dp.register_layer(Own) "
        "def spec(layer): return dp.LayerSpec(...))"
    )


class Context(nn.Module):
    """GCNet: a LayerNorm over (channels, 1, 1) between two convolutions on pooled features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze, self.norm, self.back = conv(width, 6, 1), nn.LayerNorm([6, 1, 1]), conv(6, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(F.relu(self.norm(self.squeeze(x.mean((2, 3), keepdim=True)))))


def test_a_layer_norm_over_channels_with_trailing_ones() -> None:
    space = check_laws(Body(Context), torch.randn(IMAGE), seeds=2)
    assert [group.name for group in space.groups] == ["stem", "norm.squeeze", "up"]
    small = dp.slim(Body(Context), space, dp.Masks.random(space, keep=0.5))
    assert small.norm.norm.normalized_shape == (3, 1, 1)
