"""The caller's inference mode changes nothing."""

from __future__ import annotations

import torch

import deap_prune as dp
from tests.helpers.pruning import prepared
from tests.helpers.runs import search


def test_a_search_under_inference_mode() -> None:
    """Criteria take gradients, which the caller's inference mode would forbid."""
    with torch.inference_mode():
        inside = search(None, generations=1)
    assert [s.values for s in inside.front] == [s.values for s in search(None, generations=1).front]


def test_tracing_under_inference_mode() -> None:
    model, inputs, *_ = prepared("residual")
    with torch.inference_mode():
        inside = dp.trace(model, inputs)
    assert str(inside) == str(dp.trace(model, inputs))
