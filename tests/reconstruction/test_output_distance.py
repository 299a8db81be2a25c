"""The distance of a pruned network's outputs, beside a plain computation on the slim network."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import Digits
from torch import nn

import deap_prune as dp
from deap_prune.reconstruction.output_distance import IMAGES


def test_it_is_the_divergence_of_the_compensated_network(digits: Digits) -> None:
    evaluator = digits.evaluator(objectives=("loss",), recalibrate="closed_form")
    masks = dp.Masks.random(digits.space, keep=0.5, seed=0)
    images = digits.calibration[0][:IMAGES]
    with torch.no_grad():
        dense, small = (network.eval()(images).log_softmax(1) for network in (digits.model, evaluator.slim(masks)))
    expected = float((dense.exp() * (dense - small)).sum(dim=1).mean())
    assert evaluator.output_distance(masks) == pytest.approx(expected, rel=1e-3)
    assert evaluator.output_distance(dp.Masks({})) == pytest.approx(0, abs=1e-6)
    other = evaluator.with_settings(recalibrate="data").output_distance(masks)
    assert other != pytest.approx(expected, rel=1e-3)  # the statistics are the dense network's


@pytest.mark.parametrize("tensors", [True, False])
def test_outputs_that_are_not_logits(tensors: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3)).eval()
    images = torch.randn(20, 3, 8, 8)
    space = dp.trace(model, images[:1])

    def forward(network: nn.Module, batch: Any) -> tuple[Any, None]:
        outputs = network(batch[0])
        return ({"map": outputs} if tensors else [str(outputs.shape)]), None

    data = [(images, torch.zeros(20))]
    evaluator = dp.Evaluator(model, space, calibration=data, forward=forward, objectives=("flops",))
    masks = dp.Masks.random(space, keep=0.5, seed=0)
    with torch.no_grad():
        dense, small = model(images), evaluator.slim(masks)(images)
    expected = float((small - dense).square().sum() / dense.square().sum())
    distance = evaluator.output_distance(masks)
    assert distance == pytest.approx(expected, rel=1e-4) if tensors else math.isnan(distance)
