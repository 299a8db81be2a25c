"""Properties that a criterion's formula implies: scaling, dead filters, similar filters."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import deap_prune as dp
from deap_prune.criteria import activation
from tests.helpers.plain_criteria import batches, conv_net

NAMES = tuple(dp.criteria())


def scores_of(net: nn.Module, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Scores of the first convolution, in float64."""
    data = [(x.double(), y) for x, y in batches()]
    return dict(dp.score(net, dp.trace(net, data[0][0]), data, criteria=names)["0"])


@pytest.mark.parametrize(
    ("names", "degree"),
    [
        (("l1", "l2", "fpgm", "fermat"), 1),
        (("whc",), 2),
        (("cosine", "correlation", "lamp", "svd", "bn_scale", "bn_shift", "out_l1"), 0),
    ],
)
def test_degree_of_homogeneity_in_the_weights(names: tuple[str, ...], degree: int) -> None:
    net = conv_net().double()
    before = scores_of(net, names)
    net[0].weight.data *= 3
    for name, values in scores_of(net, names).items():
        np.testing.assert_allclose(values, 3.0**degree * before[name], rtol=1e-4, err_msg=name)


def test_rescaling_that_keeps_the_function() -> None:
    """BN's scale and shift times 4, the next layer's columns divided by 4: criteria on the loss do not change."""
    net = conv_net().double().eval()
    names = tuple(n for n in NAMES if n != "attention")
    before, rescaled = scores_of(net, names), copy.deepcopy(net)
    rescaled[1].weight.data *= 4
    rescaled[1].bias.data *= 4
    rescaled[3].weight.data /= 4
    x = batches()[0][0].double()
    assert torch.allclose(net(x), rescaled(x))
    factor = {"bn_scale": 4, "bn_shift": 4, "mean_activation": 4, "chip": 4, "out_l1": 0.25}
    depends_on_parametrisation = {"grasp"}  # the norm of the gradient is not invariant
    for name, values in scores_of(rescaled, names).items():
        if name not in depends_on_parametrisation:
            np.testing.assert_allclose(values, factor.get(name, 1) * before[name], rtol=1e-4, atol=1e-12, err_msg=name)


def test_a_filter_without_output_has_the_lowest_score() -> None:
    """BN scale and shift 0: every criterion on activations or gradients gives it the minimum."""
    net = conv_net().double()
    net[1].weight.data[2] = net[1].bias.data[2] = 0
    names = ("bn_scale", "bn_shift", "mean_activation", "apoz", "entropy", "hrank", "chip", "kl", "taylor_activation")
    names += ("taylor_gate", "taylor_weight", "group_fisher", "snip", "obd", "obd_c", "synflow", "thinet")
    scores = scores_of(net, names)
    assert set(scores) == set(names)
    for name, values in scores.items():
        assert values[2] == values.min(), name
    assert abs(scores_of(net, ("oracle",))["oracle"][2]) < 1e-12


def test_a_filter_of_zeros_has_the_lowest_score() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with torch.no_grad():
        net[0].weight[5] = 0
    space = dp.trace(net, torch.randn(1, 3, 8, 8))
    table = dp.score(net, space, None, criteria=("correlation", "l1", "l2", "cosine", "whc", "lamp", "svd"))
    for name, scores in table["0"].items():
        assert scores.argmin() == 5, name


def test_similarity_criteria_detect_parallel_filters() -> None:
    """Of two parallel filters ``correlation`` gives the smaller one the minimum, and keeps the larger one."""
    net = conv_net().double()
    net[0].weight.data[4] = 0.5 * net[0].weight.data[1]
    scores = scores_of(net, ("correlation", "cosine"))
    assert scores["correlation"].argmin() == 4 and abs(scores["correlation"][4]) < 1e-6
    assert scores["correlation"][1] > 0.1
    assert set(scores["cosine"].argsort()[:2]) == {1, 4}


def test_entropy_of_known_distributions() -> None:
    pooled = torch.zeros(50, 3)
    pooled[0, 0] = 1.0  # active on one image
    pooled[:, 1] = torch.linspace(0, 1, 50)  # uniform
    pooled[:25, 2] = 1.0  # two values
    single, uniform, two = activation.entropy(pooled).tolist()
    assert single < two < uniform
    assert np.isclose(two, np.log(2)) and np.isclose(uniform, np.log(10))
    assert float(activation.entropy(torch.ones(5, 1))) == 0


def test_signs_do_not_cancel_over_the_channels_of_a_filter() -> None:
    """In a depthwise layer with two channels per filter, shifts of opposite signs add up by absolute value."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1))
    with torch.no_grad():
        net[2].bias.copy_(torch.tensor([1.0, -1, 2, -2, 3, -3, 4, -4]))
    space = dp.trace(net, torch.randn(1, 3, 8, 8))
    table = dp.score(net, space, None, criteria=("bn_shift",))
    np.testing.assert_allclose(table["0"]["bn_shift"], [1, 2, 3, 4])
