"""Laws 1 and 2: masked = slim, cost = count."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import deap_prune as dp
from deap_prune.structure.inputs import as_call, forward
from deap_prune.structure.tracing.fvcore_count import count_flops
from tests.helpers.networks import LARGE, NETWORKS
from tests.helpers.pruning import draw_masks, gap, outputs_masked, outputs_slim, prepared

SEEDS = st.integers(0, 2**32 - 1)


# ------------------------------------------------------------------ law 1
def check_law_1(name: str, seed: int) -> None:
    _, _, space, random, call = prepared(name)
    masks = draw_masks(space, seed)
    small = outputs_slim(random, space, masks, call)
    assert gap(small, outputs_masked(random, space, masks, call)) < 1e-9


@pytest.mark.parametrize("name", NETWORKS)
@given(seed=SEEDS)
@settings(max_examples=8)
def test_masked_is_slim(name: str, seed: int) -> None:
    check_law_1(name, seed)


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("seed", [0, 1])
def test_masked_is_slim_on_large_networks(name: str, seed: int) -> None:
    check_law_1(name, seed)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_wrong_mask_is_noticed(name: str) -> None:
    """The law's own test: a mask that is shifted in one group shows in the outputs, whichever the group."""
    _, _, space, random, call = prepared(name)
    right = dp.Masks.random(space, keep=0.5, seed=4)
    small = outputs_slim(random, space, right, call)
    for group in space.groups:
        if "head" in group.name:  # runs in training only, see below
            continue
        differences = []
        for shift in (1, 2, 3):
            keep = np.roll(right[group.name].reshape(group.blocks, -1), shift, axis=1).reshape(-1)
            wrong = dp.Masks({**right, group.name: keep})
            if wrong != right:
                differences.append(gap(small, outputs_masked(random, space, wrong, call)))
        assert max(differences) > 1e-6, group.name


@pytest.mark.parametrize("name", NETWORKS)
def test_keeping_everything_is_the_identity(name: str) -> None:
    _, _, space, random, call = prepared(name)
    everything = dp.Masks({g.name: np.ones(g.size, dtype=bool) for g in space.groups})
    with torch.no_grad():
        dense = forward(random, call)
    assert gap(outputs_slim(random, space, everything, call), dense) == 0
    assert gap(outputs_masked(random, space, everything, call), dense) == 0
    assert dp.flops(space, everything) == dp.flops(space, dp.Masks({})) == space.flops
    assert dp.params(space, everything) == space.params


def test_slim_network_is_plain_and_independent() -> None:
    """The same classes, its own weights, trainable: nothing of ours stays in it."""
    model, inputs, space, _, _ = prepared("residual")
    small = dp.slim(model, space, dp.Masks.random(space, keep=0.5))
    assert [type(m) for m in small.modules()] == [type(m) for m in model.modules()]
    assert not {p.data_ptr() for p in small.parameters()} & {p.data_ptr() for p in model.parameters()}
    small(inputs).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


# ------------------------------------------------------------------ law 2
@pytest.mark.parametrize("name", NETWORKS)
@given(seed=SEEDS)
@settings(max_examples=4)
def test_cost_is_count(name: str, seed: int) -> None:
    model, inputs, space, _, _ = prepared(name)
    masks = draw_masks(space, seed)
    small = dp.slim(model, space, masks)
    assert dp.flops(space, masks) == count_flops(small, as_call(inputs))[0]
    assert dp.params(space, masks) == sum(p.numel() for p in small.parameters())
    assert type(dp.flops(space, masks)) is int


@pytest.mark.parametrize("name", [*NETWORKS, *LARGE])
def test_dense_cost_is_count(name: str) -> None:
    model, inputs, space, _, _ = prepared(name)
    assert space.flops == count_flops(model, as_call(inputs))[0]
    assert space.params == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["residual", "resnet20_a", "resnet56_a", "concat", "channels_last"])
def test_cost_is_fvcore_s_own_count(name: str) -> None:
    """Without our wrapper around fvcore (none of these has padding="same")."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis
    model, inputs, space, _, _ = prepared(name)
    masks = draw_masks(space, 11)
    analysis = FlopCountAnalysis(dp.slim(model, space, masks).eval(), inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert analysis.total() == dp.flops(space, masks) < space.flops


@pytest.mark.parametrize("name", NETWORKS)
@given(seed=SEEDS)
@settings(max_examples=10)
def test_more_filters_never_cost_less(name: str, seed: int) -> None:
    space = prepared(name).space
    few = space.kept_counts(draw_masks(space, seed))
    more = np.maximum(few, space.kept_counts(draw_masks(space, seed + 1)))
    assert space.flops_of(few) <= space.flops_of(more) <= space.flops
    assert space.params_of(few) <= space.params_of(more) <= space.params
    assert space.min_flops <= space.flops_of(few)


def test_what_fvcore_leaves_out_is_shown() -> None:
    space = prepared("flatten").space
    assert space.uncounted["aten::max_pool2d"] == 1
    assert "not counted by fvcore: aten::max_pool2d x1" in str(space)
