"""Squared weight gradients of single images, for every kind of layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from deap_prune.criteria import collect
from deap_prune.criteria.passes.weights import filter_rows
from tests.helpers.pruning import prepared


@pytest.mark.parametrize("name", ["shared", "grouped", "transposed", "channels_last", "sequence", "points", "norms"])
def test_squared_gradients_equal_those_of_single_images(name: str) -> None:
    """Linear, grouped, transposed, one-dimensional, called twice, with a second argument."""
    _, inputs, space, model, _ = prepared(name)
    batch = tree_map(lambda x: torch.randn(5, *x.shape[1:], dtype=torch.float64), inputs)

    def forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
        return (model(*batch) if isinstance(batch, tuple) else model(batch)), None

    def loss(outputs: Any, targets: None) -> Tensor:
        return sum((out.square().sum(dim=1).mean() for out in tree_leaves(outputs)), torch.zeros(()))

    statistics = collect(model, space, [batch], needs=("gradient_square",), forward=forward, loss=loss)
    mean_square = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for i in range(5):
        model.zero_grad()
        loss(forward(model, tree_map(lambda x, i=i: x[i : i + 1], batch))[0], None).backward()
        for n, p in model.named_parameters():
            mean_square[n] += p.grad.square() / 5 if p.grad is not None else 0
    model.zero_grad()
    for group in space.groups:
        by_layer = [
            filter_rows(model, m, "weight", mean_square[f"{m.layer}.weight"].detach()) for m in group.layers("filter")
        ]
        expected = [rows for rows in by_layer if rows is not None]
        for (square,), rows in zip(statistics.of(group, "gradient_square"), expected, strict=True):
            torch.testing.assert_close(square, rows)
