"""The loss that criteria use: without labels, and the user's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

import deap_prune as dp
from tests.helpers.plain_criteria import batches, conv_net

NAMES = tuple(n for n in dp.criteria() if n != "random")


def test_without_labels_targets_and_loss_are_ignored() -> None:
    net, data = conv_net().eval(), batches()
    space = dp.trace(net, data[0][0])

    def refuse(outputs: Tensor, targets: Tensor) -> Tensor:
        raise AssertionError("the loss was called")

    options: dict[str, Any] = {"criteria": NAMES, "labels": False}
    illegal = [(x, 1000 - y) for x, y in data]  # the network has no such classes
    legal_table, illegal_table = (dp.score(net, space, d, loss=refuse, **options) for d in (data, illegal))
    for name in NAMES:
        assert np.array_equal(legal_table["0"][name], illegal_table["0"][name]), name
        assert np.ptp(legal_table["0"][name]) > 0, name
    inputs = torch.cat([x for x, _ in data])
    pairs = dp.score(net, space, (inputs, torch.zeros(len(inputs)).long()), **options)
    inputs_alone = dp.score(net, space, inputs, **options)
    assert all(np.array_equal(inputs_alone["0"][n], pairs["0"][n]) for n in NAMES)


def test_a_search_without_labels_ignores_them() -> None:
    """Shifted labels give the same front: the objective compares with the dense network, too."""
    net, data = conv_net().eval(), batches()
    fronts = []
    for shift in (0, 1):
        shifted = [(x, y.roll(shift)) for x, y in data]
        result = dp.search(
            net,
            data[0][0],
            calibration=shifted,
            validation=shifted,
            criteria=("taylor_gate", "oracle", "l2"),
            objectives=("agreement", "flops"),
            labels=False,
            population=4,
            generations=1,
            progress=False,
            device="cpu",
        )
        fronts.append([s.values for s in result.front])
    assert fronts[0] == fronts[1]


def test_without_labels_taylor_scores_measure_the_change_of_the_outputs() -> None:
    """E[(w J^T e)^2] = |J w|^2: over many noise vectors the score approaches the squared change of all outputs."""
    net, (x, _) = conv_net().double().eval(), batches()[0]
    x = x[:1].double()
    expected = []
    for i in range(7):
        ones = torch.ones(7, 1, 1, dtype=torch.float64)

        def gated(gate: Tensor, i: int = i, ones: Tensor = ones) -> Tensor:
            return net[3:](net[:3](x) * torch.where(torch.arange(7).view(-1, 1, 1) == i, gate, ones))

        change = torch.autograd.functional.jacobian(gated, torch.ones(1, 1, 1, dtype=torch.float64))
        expected.append(float(change.square().sum()))
    data, space = [(x.expand(4000, -1, -1, -1), torch.zeros(4000).long())], dp.trace(net, x)
    scores = dp.score(net, space, data, criteria=("group_fisher",), labels=False)["0"]["group_fisher"]
    ratio = scores / np.array(expected)
    np.testing.assert_allclose(ratio / ratio.mean(), 1, atol=0.15)


def test_without_labels_scores_do_not_depend_on_the_batch_size() -> None:
    """Each batch has its own noise: with the same noise for all batches the mean would not converge."""
    torch.manual_seed(0)
    head = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *head)
    x = torch.randn(256, 3, 8, 8)
    space = dp.trace(net, x[:1])
    splits = ([(x[i : i + size], None) for i in range(0, 256, size)] for size in (256, 4))
    tables = [dp.score(net, space, data, criteria=("group_fisher",), labels=False) for data in splits]
    one_batch, small_batches = (table["0"]["group_fisher"] for table in tables)
    assert spearmanr(one_batch, small_batches).statistic > 0.6


def test_a_loss_of_the_user_changes_the_scores() -> None:
    net, data = conv_net().eval(), batches()
    space = dp.trace(net, data[0][0])
    cross_entropy, squared_error = (
        dp.score(net, space, data, criteria=("snip", "oracle"), loss=loss)["0"]
        for loss in (F.cross_entropy, lambda out, y: F.mse_loss(out, F.one_hot(y, 4).float()))
    )
    assert not np.allclose(cross_entropy["snip"], squared_error["snip"])
    assert not np.allclose(cross_entropy["oracle"], squared_error["oracle"])
