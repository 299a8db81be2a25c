"""Scores of networks in half precision, and of layers whose inputs are dead."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import deap_prune as dp
from tests.helpers.pruning import prepared

DATA = (torch.randn(12, 3, 8, 8), torch.arange(12) % 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_networks_of_half_precision_are_scored(dtype: torch.dtype) -> None:
    """Criteria compute in fp32: not every device has distances and sorting in half precision."""
    model, inputs, *_ = prepared("residual")
    space = dp.trace(model, inputs)
    half = copy.deepcopy(model).to(dtype)
    rounded = copy.deepcopy(half).float()
    options = {"criteria": ("l1", "fpgm", "bn_scale")}
    scores, expected = (dp.score(m, space, None, **options) for m in (half, rounded))
    for group in space.groups:
        for name in options["criteria"]:
            assert np.allclose(scores[group.name][name], expected[group.name][name], rtol=1e-6)


def test_scores_of_layers_with_dead_inputs_are_finite() -> None:
    """The moments of a dead layer's outputs are rounding errors alone."""
    model, inputs, *_ = prepared("residual")
    space = dp.trace(model, inputs)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, -50)
    table = dp.score(model, space, DATA, criteria=("compensation",))
    assert all(np.isfinite(table[group.name]["compensation"]).all() for group in space.groups)
