"""The error that one filter's removal leaves: against removing it and re-fitting by least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_compensate import grams_of

import deap_prune as dp
from deap_prune.reconstruction import reconstruction_error, removal_errors
from tests.helpers.pruning import prepared


@pytest.mark.parametrize("mode", ["full", "channel"])
@pytest.mark.parametrize(
    ("network", "group"),
    [("plain", "body.0.0"), ("residual", "body.conv3.0"), ("flatten", "conv2"), ("concat", "body.convs.0")],
)
def test_removal_is_compensation_without_one_filter(network: str, group: str, mode: str) -> None:
    space, grams = prepared(network).space, grams_of(network, mode=mode)
    found = space.group(group)
    for member in found.layers("reader"):
        gram = grams.layers[member.layer]
        only = type(grams)({member.layer: gram})
        errors = removal_errors(gram, member.positions, ridge=1e-10)
        assert errors.shape == (found.size,)
        for filter_ in range(found.size):
            masks = dp.Masks({group: np.arange(found.size) != filter_})
            expected = reconstruction_error(space, masks, only, ridge=1e-10)
            assert float(errors[filter_]) == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_blocks_are_told_apart() -> None:
    """In a grouped convolution a filter is made up for by those of its block alone."""
    grams = grams_of("grouped")
    readers = [m for g in prepared("grouped").space.groups for m in g.layers("reader")]
    member = next(m for m in readers if m.layer == "body.grouped.0")
    gram = grams.layers[member.layer]
    assert len(gram.weight) == 4
    errors = removal_errors(gram, member.positions, ridge=1e-10)
    block, own = 2, 1
    at = block * (len(gram.channels.inputs) // 4) + own
    rows = torch.arange(own * 9, own * 9 + 9)
    rest = torch.tensor([i for i in range(gram.mean.shape[1]) if i not in rows])
    moments, weight = gram.moments[block], gram.weight[block, rows, :, 0]
    unexplained = (
        moments[rows][:, rows]
        - moments[rows][:, rest] @ torch.linalg.pinv(moments[rest][:, rest]) @ moments[rest][:, rows]
    )
    expected = torch.einsum("io,ij,jo->", weight, unexplained, weight) / gram.energy.sum()
    assert float(errors[list(member.positions[:, 0]).index(at)]) == pytest.approx(float(expected), rel=1e-4)


def test_twins_are_worth_nothing() -> None:
    torch.manual_seed(0)
    from deap_prune.reconstruction import collect_grams

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.ReLU(), torch.nn.Conv2d(6, 4, 3)).double().eval()
    with torch.no_grad():
        model[0].weight[5] = model[0].weight[0]
        model[0].bias[5] = model[0].bias[0]
    x = torch.randn(8, 3, 9, 9, dtype=torch.float64)
    space = dp.trace(model, x)
    gram = collect_grams(model, space, [(x, None)]).layers["2"]
    errors = removal_errors(gram, space.groups[0].layers("reader")[0].positions)
    assert sorted(errors.argsort()[:2].tolist()) == [0, 5] and float(errors[[0, 5]].max()) < 0.1 * float(
        errors[1:5].min()
    )
