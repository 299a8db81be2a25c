"""The caller's inference mode changes nothing."""

from __future__ import annotations

from typing import Any

import torch

import deap_prune as dp
from tests.helpers.pruning import prepared
from tests.helpers.runs import OPTIONS, images, problem


def test_a_search_under_inference_mode() -> None:
    """Criteria take gradients, which the caller's inference mode would forbid."""
    task = (*problem(), images(0), images(1))

    def values() -> list[Any]:
        model, example, calibration, validation = task
        data = {"calibration": calibration, "validation": validation, "device": "cpu", "progress": False}
        return [s.values for s in dp.search(model, example, **data, **{**OPTIONS, "generations": 1}).front]

    with torch.inference_mode():
        inside = values()
    assert inside == values()


def test_tracing_under_inference_mode() -> None:
    model, inputs, *_ = prepared("residual")
    with torch.inference_mode():
        inside = dp.trace(model, inputs)
    assert str(inside) == str(dp.trace(model, inputs))
