"""The laws on whole networks of torchvision and timm: a pair on every run, the rest with the slow tests."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import deap_prune as dp
from benchmarks import coverage

SAMPLE = ("shufflenet_v2_x0_5", "timm:resnet26t")
HUGE = ("regnet_y_128gf",)  # 645 million parameters: several copies of it do not fit everywhere


def check(name: str) -> None:
    row = coverage.examine(name, seeds=1)
    assert row["law 1"] and row["law 2"], row
    assert row["share"] >= 0.85 or any("fixed positions" in reason for reason in row["refused"]), row


@pytest.mark.parametrize("name", SAMPLE)
def test_sample(name: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm", reason="timm is not installed")
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in coverage.networks()[::3] if n not in (*SAMPLE, *HUGE)])
def test_every_third(name: str) -> None:
    row = coverage.examine(name)
    assert row["law 1"] and row["law 2"], row


@pytest.mark.parametrize("size", [96, pytest.param(224, marks=pytest.mark.slow)])
def test_slimmed_googlenet_takes_a_training_step(size: int) -> None:
    """Its auxiliary heads read channels of the trunk, and run in training only."""
    model, _ = coverage.build("googlenet")
    space = dp.trace(model, torch.randn(1, 3, size, size))
    assert not space.idle
    small = dp.slim(model, space, dp.Masks.random(space, keep=(0.3, 0.7), seed=0)).train()
    outputs: Any = small(torch.randn(2, 3, size, size))
    loss = sum(F.cross_entropy(logits, torch.tensor([1, 2])) for logits in outputs)
    loss.backward()
    before = small.aux1.conv.conv.weight.clone()
    torch.optim.SGD(small.parameters(), lr=0.1).step()
    assert not torch.equal(before, small.aux1.conv.conv.weight)
    assert all(p.grad is not None for p in small.parameters())
