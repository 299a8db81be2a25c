"""Second derivatives: absent, with a warning, where torch has none."""

from __future__ import annotations

import pytest
import torch

import deap_prune as dp
from tests.helpers.pruning import prepared


def test_missing_second_derivative_is_a_warning() -> None:
    model, inputs, space, _, _ = prepared("separable")
    data = (torch.randn(4, *inputs.shape[1:]), torch.zeros(4).long())
    with pytest.warns(UserWarning, match="no second derivatives of this network, so no 'hessian_gradient': .*hardsigm"):
        table = dp.score(model, space, data, criteria=("grasp", "l1"))
    assert set(table.criteria) == {"l1"}
