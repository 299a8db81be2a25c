"""Every criterion against a plain computation of the same formula (helpers/plain_criteria.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import deap_prune as dp
from tests.helpers import plain_criteria, plain_reconstruction
from tests.helpers.networks import Head, conv_bn
from tests.helpers.plain_criteria import batches, conv_net

PLAIN = plain_criteria.PLAIN | plain_reconstruction.PLAIN


def test_every_criterion_has_a_plain_computation() -> None:
    assert len(PLAIN) >= 28
    assert {*PLAIN, "random"} == set(dp.criteria())


@pytest.mark.parametrize("name", PLAIN)
def test_criterion_equals_plain_computation(name: str) -> None:
    net, data = conv_net(), batches()
    space = dp.trace(net, data[0][0])
    scores = dp.score(net, space, data, criteria=(name,))["0"][name]
    expected = PLAIN[name](net, data)
    assert scores.dtype == np.float64 and np.ptp(expected) > 0
    cancelling = name in {"kl", "oracle", "grasp"}  # differences of nearly equal numbers
    atol = 1e-4 * abs(expected).max() if cancelling else 0
    np.testing.assert_allclose(scores, expected, rtol=2e-3 if name == "fermat" else 1e-4, atol=atol)


def test_fermat_point_that_coincides_with_a_filter() -> None:
    """Weiszfeld's iteration may reach one of the filters: no NaN, and that filter's distance is 0."""
    net = Head(nn.Sequential(conv_bn(6, 5, 1), nn.ReLU()), 6, 5)
    with torch.no_grad():
        net.body[0][0].weight.zero_()
        for i, sign in ((0, 1.0), (1, -1.0), (2, 1.0), (3, -1.0)):
            net.body[0][0].weight[i, i // 2] = sign
    space = dp.trace(net, torch.randn(1, 3, 8, 8))
    scores = dp.score(net, space, criteria=("fermat",))["body.0.0"]["fermat"]
    np.testing.assert_allclose(scores, [1, 1, 1, 1, 0], atol=1e-5)
