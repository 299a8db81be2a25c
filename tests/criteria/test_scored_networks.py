"""Every criterion on every test network: any layers, inputs and outputs."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import deap_prune as dp
from tests.helpers.networks import NETWORKS, Head, Keywords
from tests.helpers.pruning import assert_unchanged, prepared, snapshot

NAMES = tuple(dp.criteria())
ON_WEIGHTS = {"l1", "l2", "fpgm", "fermat", "cosine", "whc", "correlation", "lamp", "svd", "out_l1", "random"}


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("name", [n for n in NETWORKS if "resnet" not in n])
def test_every_network_is_scored(name: str, labels: bool) -> None:
    """Scores are finite, one per filter; the network is not changed."""
    model, inputs, space, _, _ = prepared(name)
    batch = tree_map(lambda x: torch.randn(5, *x.shape[1:]) if isinstance(x, Tensor) else x, inputs)

    def forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
        if isinstance(batch, dict):
            return model(**batch), None
        return (model(*batch) if isinstance(batch, tuple) else model(batch)), None

    def loss(outputs: Any, targets: None) -> Tensor:
        return sum((out.square().mean() for out in tree_leaves(outputs)), torch.zeros(()))

    before = snapshot(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch has no second derivative of hardsigmoid: grasp is absent
        table = dp.score(model, space, [batch], criteria=NAMES, forward=forward, loss=loss, labels=labels)
    assert_unchanged(model, before)
    expected = set(NAMES) - {"apoz", "hrank", "bn_scale", "bn_shift", "taylor_gate", "grasp"}
    if name in {"transposed", "standardised", "points", "points_by_name", "keywords"}:
        expected -= {"compensation", "elimination"}  # these next layers are not re-fitted
    for group in space.groups:
        scores = table[group.name]
        if name == "auxiliary" and "head" in group.name:  # it runs in training mode only
            assert set(scores) == {*ON_WEIGHTS, "bn_scale", "bn_shift", "kl", "oracle"}
        else:
            assert expected <= set(scores)
        assert all(s.shape == (group.size,) and np.isfinite(s).all() for s in scores.values())


def test_keyword_arguments_give_the_scores_of_positional_ones() -> None:
    tables = []
    for named in (True, False):
        torch.manual_seed(0)
        model = Head(Keywords(named=named), 6, 7)
        data = (torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4]))
        tables.append(dp.score(model, dp.trace(model, data[0]), data, criteria=NAMES))
    by_keyword, by_position = tables
    assert "body.points" in by_keyword.scores and set(by_keyword.criteria) == set(NAMES)
    for group, scores in by_keyword.scores.items():
        assert set(scores) == set(by_position[group])
        for criterion, values in scores.items():
            np.testing.assert_array_equal(values, by_position[group][criterion], err_msg=f"{criterion} of {group}")
