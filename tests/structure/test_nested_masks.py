"""A mask inside a mask keeps what both keep, on every kind of network; what can't be combined is an error."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import deap_prune as dp
from deap_prune.errors import MaskError
from tests.helpers.networks import IMAGE
from tests.helpers.pruning import assert_unchanged, gap, outputs_masked, outputs_slim, prepared, snapshot
from tests.structure.test_mixing import BLOCKS, Mixed


def overlapping(space: dp.PruningSpace) -> tuple[dp.Masks, dp.Masks, dp.Masks]:
    """Two masks that share pruned filters in each group, and what both keep; equal in all blocks."""
    masks: tuple[dict[str, np.ndarray], ...] = ({}, {}, {})
    for group in space.groups:
        width = group.size // group.blocks
        places = np.arange(width)
        first, second = places % 3 != 1, places % 4 != 1
        for each, keep in zip(masks, (first, second, first & second), strict=True):
            each[group.name] = np.tile(keep, group.blocks)
    return dp.Masks(masks[0]), dp.Masks(masks[1]), dp.Masks(masks[2])


@pytest.mark.parametrize(
    "name", ["residual", "grouped", "shuffle", "norms", "norms_by_channel", "attention", "channels_last", "sequence"]
)
def test_both_masks_count(name: str) -> None:
    _, _, space, random, call = prepared(name)
    first, second, both = overlapping(space)
    before, small = snapshot(random), outputs_slim(random, space, both, call)
    for outer, inner in ((first, second), (second, first)):
        outside = outputs_masked(random, space, outer, call)
        with dp.masked(random, space, outer):
            assert gap(outputs_masked(random, space, inner, call), small) < 1e-9
            assert gap(outputs_masked(random, space, dp.Masks({}), call), outside) == 0
    assert_unchanged(random, before)


@pytest.mark.parametrize("case", ["norm", "spatial gate", "fused attention"])
def test_both_masks_count_where_functions_mix_channels(case: str) -> None:
    network, images = Mixed(block=BLOCKS[case]()).eval(), torch.randn(IMAGE)
    space = dp.trace(network, images)
    assert space.mixing
    first, second, both = overlapping(space)
    small, smallest = dp.slim(network, space, first), dp.slim(network, space, both)
    with torch.no_grad(), dp.masked(network, space, first):
        torch.testing.assert_close(network(images), small(images))
        with dp.masked(network, space, second):
            torch.testing.assert_close(network(images), smallest(images))
        torch.testing.assert_close(network(images), small(images))


def test_masks_without_a_filter_in_common() -> None:
    _, _, space, random, _ = prepared("residual")
    group = space.groups[0]
    keep = np.arange(group.size) < 1
    with (
        dp.masked(random, space, dp.Masks({group.name: keep})),
        pytest.raises(MaskError, match=r"what both keep, which is no mask: .*" + group.name),
        dp.masked(random, space, dp.Masks({group.name: ~keep})),
    ):
        pass


def test_masks_of_two_traces() -> None:
    model, inputs, space, _, _ = prepared("residual")
    model = copy.deepcopy(model)
    again = dp.trace(model, inputs)
    with (
        dp.masked(model, space, dp.Masks({})),
        pytest.raises(MaskError, match="under a mask of another space"),
        dp.masked(model, again, dp.Masks({})),
    ):
        pass


def test_networks_as_evaluated_do_not_nest() -> None:
    model, inputs, space, _, _ = prepared("residual")
    model, x = copy.deepcopy(model), torch.randn(8, *inputs.shape[1:])
    data = (x, torch.zeros(8, dtype=torch.int64))
    evaluate = dp.Evaluator(model, space, calibration=data, validation=data, objectives=("loss",), device="cpu")
    first, second, _ = overlapping(space)
    before = snapshot(model)
    for outer, inner in (
        (evaluate.masked(first), evaluate.masked(second)),
        (evaluate.masked(first), dp.masked(model, space, second)),
        (dp.masked(model, space, first), evaluate.masked(second)),
    ):
        with outer, pytest.raises(MaskError, match="is under a mask already"), inner:
            pass
        assert_unchanged(model, before)
    with evaluate.masked(first), torch.no_grad():  # and what was refused leaves nothing behind
        torch.testing.assert_close(model(x), evaluate.slim(first)(x), atol=1e-5, rtol=1e-4)
