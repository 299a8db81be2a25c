"""Layers that did not run: narrowed like siblings that ran, else named in a warning at slim."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deap_prune as dp
from tests.helpers.networks import IMAGE, conv, conv_bn
from tests.structure.laws import check_laws


class Domains(nn.Module):
    """Two sets of norms and two heads; one of each runs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.domain = conv(3, 8), conv(8, 8), 0
        self.norms = nn.ModuleDict({"day": nn.BatchNorm2d(8), "night": nn.BatchNorm2d(8)})
        self.first, self.second = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norms[("day", "night")[self.domain]](self.a(x)))
        x = F.relu((self.first, self.second)[self.domain](self.b(x)))
        return self.heads[self.domain](x.mean((2, 3)))


def test_layers_of_another_domain_are_narrowed_alike() -> None:
    model = Domains()
    space = check_laws(model, torch.randn(IMAGE))
    assert {entry.name for entry in space.idle_layers} == set(space.idle)
    assert "did not run, narrowed like their siblings: norms.night, second" in str(space)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = dp.slim(model, space, dp.Masks.random(space, keep=0.5))
    small.domain = 1
    assert small(torch.randn(2, 3, 8, 8)).shape == (2, 4)


class Blocks(nn.Module):
    """Residual blocks of which the last does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc, self.depth = conv(3, 8), nn.Linear(8, 4), 2
        self.blocks = nn.ModuleList(nn.Sequential(conv_bn(8, 6), nn.ReLU(), conv_bn(6, 8)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks[: self.depth]:
            x = x + block(x)
        return self.fc(x.mean((2, 3)))


def test_a_skipped_block_fits_the_residual_stream() -> None:
    model = Blocks()
    space = check_laws(model, torch.randn(IMAGE))
    small = dp.slim(model, space, dp.Masks.random(space, keep=0.5))
    assert (small.blocks[2][0][0].in_channels, small.blocks[2][0][0].out_channels) == (4, 6)
    small.depth = 3
    assert small(torch.randn(2, 3, 8, 8)).shape == (2, 4)


def test_other_idle_layers_are_named_at_slim() -> None:
    model = Blocks()
    model.detector = conv(8, 5)
    space = dp.trace(model, torch.randn(IMAGE))
    with pytest.warns(UserWarning, match="did not run when the network was traced.*full width: detector; if they run"):
        dp.slim(model, space, dp.Masks.random(space, keep=0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dp.slim(model, space, dp.Masks({}))
