"""Scoring and moments go through the calibration images batch by batch, and keep no feature map of an earlier one."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.data.batches import LARGEST_BATCH, to_batches
from deap_prune.options import BlendOptions
from deap_prune.reconstruction import collect_grams
from tests.helpers.networks import conv_bn


class Alive(nn.Module):
    """Passes its input on, and notes how many inputs of earlier calls are alive at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []
        self.alive: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.alive.append(sum(ref() is not None for ref in self.seen))
        x = x + 0
        self.seen.append(weakref.ref(x))
        return x

    def __deepcopy__(self, memo: Any) -> Alive:
        return self


def test_no_more_than_a_batch() -> None:
    torch.manual_seed(0)
    watch = Alive()
    model = nn.Sequential(*conv_bn(3, 8), nn.ReLU(), watch, *conv_bn(8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4))
    batches = [(torch.randn(8, 3, 8, 8), torch.randint(4, (8,))) for _ in range(6)]
    space = dp.trace(model, batches[0][0][:1])
    for run in (
        lambda: collect_grams(model.eval(), space, batches),
        lambda: dp.score(model, space, batches, criteria=BlendOptions().criteria),
    ):
        watch.seen.clear()
        watch.alive.clear()
        run()
        assert len(watch.alive) >= 6 and max(watch.alive) <= 1  # the batch before may wait for the end of its loop


def test_batches_of_tensors_have_a_largest_size() -> None:
    """Large images make small batches, whatever the batch size."""
    few = LARGEST_BATCH // (4 * 3 * 1024 * 1024) * 3
    x = torch.zeros(1, 3, 1024, 1024).expand(few, -1, -1, -1)
    sizes = [len(images) for images, _ in to_batches((x, torch.zeros(few)), name="x", device=torch.device("cpu"))]
    assert sum(sizes) == few and max(sizes) * 4 * 3 * 1024**2 <= LARGEST_BATCH
    small = torch.zeros(500, 3, 8, 8)
    sizes = [len(images) for images, _ in to_batches((small, torch.zeros(500)), name="x", device=torch.device("cpu"))]
    assert sizes == [250, 250]
