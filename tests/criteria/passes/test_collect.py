"""Which passes run, how often, and that batches do not matter."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.criteria import STATISTICS, collect
from deap_prune.criteria.passes import layer_inputs
from deap_prune.criteria.passes.collect import PASSES, passes_for
from tests.helpers.plain_criteria import batches, conv_net

NAMES = tuple(dp.criteria())
SLOW = {"kl", "oracle", "attention"}
MORE_PASSES = {"hrank", "chip", "thinet", "grasp", "synflow", "compensation", "elimination"}


def test_every_statistic_is_gathered_by_one_pass() -> None:
    gathered = list(itertools.chain.from_iterable(one.statistics for one in PASSES))
    assert sorted(gathered) == sorted(STATISTICS)


def test_passes_run_after_those_they_need() -> None:
    for one in PASSES:
        order = [chosen for chosen, _ in passes_for(one.statistics)]
        gathered_before = set().union(*(earlier.statistics for earlier in order[: order.index(one)]))
        assert one.after <= gathered_before


def test_cheap_criteria_share_one_pass() -> None:
    net, data = conv_net().eval(), batches()
    space = dp.trace(net, data[0][0])
    gradients_enabled: list[bool] = []  # one entry per forward pass of a batch

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        gradients_enabled.append(torch.is_grad_enabled())
        return model(batch[0]), batch[1]

    def count(*names: str) -> int:
        gradients_enabled.clear()
        dp.score(net, space, data, criteria=names, forward=forward)
        return len(gradients_enabled)

    cheap = [n for n in NAMES if n not in SLOW | MORE_PASSES]
    assert len(cheap) >= 16
    assert count(*cheap) == len(data) and all(gradients_enabled)
    assert count("l1", "bn_scale", "random", "out_l1") == 0
    assert count("apoz", "entropy", "mean_activation") == len(data) and not any(gradients_enabled)
    assert count(*cheap, "grasp") == 2 * len(data)
    assert count("kl", "oracle") == count("kl") == count("oracle")  # they share a pass
    assert count("hrank", "chip") == count("chip")


def test_tables_with_one_row_per_image_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    net, data = conv_net().eval(), batches()
    space = dp.trace(net, data[0][0])
    monkeypatch.setattr(layer_inputs, "ROWS", 10)
    needs = ("activation_pooled", "activation_taylor", "group_taylor")
    statistics = collect(net, space, data, needs=needs)
    for need in needs:
        assert all(len(t) == 10 for group in space.groups for (t,) in statistics.of(group, need))


def test_scores_do_not_depend_on_the_batches() -> None:
    """Except for statistics with one row per batch, and for training."""
    net, data = conv_net().double().eval(), [(x.double(), y) for x, y in batches()]
    space = dp.trace(net, data[0][0])
    names = tuple(n for n in NAMES if n not in {"taylor_weight", "taylor_gate", "attention", "thinet"})
    one_batch = [tuple(torch.cat(parts) for parts in zip(*data, strict=True))]
    several, single = (dp.score(net, space, d, criteria=names)["0"] for d in (data, one_batch))
    for name in names:
        np.testing.assert_allclose(several[name], single[name], rtol=1e-6, atol=1e-12, err_msg=name)
