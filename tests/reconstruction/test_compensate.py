"""Closed-form compensation: against plain least squares on the patches themselves, and under the laws."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Digits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.reconstruction import collect_grams, compensate, propagate_bn, reconstruction_error
from deap_prune.reconstruction.matrix import from_matrix, patches_of, positions, to_matrix
from deap_prune.structure.inputs import forward
from deap_prune.structure.layers import describe_layer
from tests.helpers.moments import EVERY, PADDED, few_rows, grams_of, read_by
from tests.helpers.networks import NETWORKS
from tests.helpers.pruning import assert_unchanged, draw_masks, gap, prepared, snapshot

# ------------------------------------------------------------------ patches
LAYERS = {
    "conv": (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 7, 5)),
    "strided": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2)), (2, 4, 9, 8)),
    "same": (nn.Conv2d(4, 6, (3, 2), padding="same", dilation=2), (2, 4, 7, 5)),
    "valid": (nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 7, 5)),
    "reflect": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 7, 5)),
    "circular": (nn.Conv1d(4, 6, 5, padding=2, padding_mode="circular"), (2, 4, 9)),
    "pointwise": (nn.Conv2d(4, 6, 1, stride=2, bias=False), (2, 4, 7, 5)),
    "grouped": (nn.Conv2d(8, 6, 3, groups=2), (2, 8, 7, 5)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, padding=1), (2, 4, 7, 5)),
    "three_d": (nn.Conv3d(2, 3, (2, 3, 1), padding=(1, 0, 0)), (2, 2, 4, 5, 3)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 5, 4)),
    "transposed_dilated": (nn.ConvTranspose1d(4, 6, 3, stride=3, dilation=2, padding=5, bias=False), (2, 4, 6)),
    "linear": (nn.Linear(4, 6), (2, 4)),
    "linear_last": (nn.Linear(4, 6, bias=False), (2, 3, 5, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_patches_times_weight_is_the_layer(name: str) -> None:
    layer, shape = LAYERS[name]
    layer, x = copy.deepcopy(layer).double(), torch.randn(shape, dtype=torch.float64)
    spec = describe_layer(layer)
    assert spec is not None
    y = positions(layer(x), spec).detach()
    picks = torch.randperm(len(y))[:20]
    patches = patches_of(layer, x, picks)
    weight = to_matrix(layer.weight.detach(), spec, "channel")  # (blocks, inputs, outputs, taps)
    split = patches.view(len(picks), len(weight), -1, patches.shape[2])
    found = torch.einsum("rbit,biot->rbo", split, weight).flatten(1)
    found = found + (0 if layer.bias is None else layer.bias.detach())
    assert torch.allclose(found, y[picks], atol=1e-12)
    for form in ("full", "channel"):
        assert torch.equal(from_matrix(to_matrix(layer.weight, spec, form), layer.weight, spec, form), layer.weight)


# ------------------------------------------------------------------ the fit against plain least squares
def plain_patches(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """(rows, channels, taps), by torch's own unfold."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1], 1)
    columns = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
    taps = layer.kernel_size[0] * layer.kernel_size[1]
    return columns.transpose(1, 2).reshape(-1, layer.in_channels, taps)


@pytest.mark.parametrize(
    ("network", "name"),
    [
        ("plain", "body.2"),  # bias, then ReLU
        ("residual", "body.conv2.0"),  # no bias, BN, then a sum
        ("residual", "body.short.0"),  # strided 1x1
        ("concat", "body.convs.1"),  # reads a concatenation of groups
        ("flatten", "fc1"),  # every pixel of a channel is a feature
        ("separable", "body.project.0"),
        ("norms", "body.conv2"),  # GroupNorm after it: its own bias
        ("digits_resnet", "fc"),
    ],
)
def test_kept_weights_are_the_least_squares_fit(network: str, name: str) -> None:
    _, _, space, random, call = prepared(network)
    masks = dp.Masks.random(space, keep=0.6, seed=4)
    keep = space.kept(masks)
    entry = next(e for e in space.layers if e.name == name)
    layer = random.get_submodule(name)
    x, y = read_by(random, name, call)
    spec = describe_layer(layer)
    assert spec is not None
    stays = torch.from_numpy(keep[entry.inputs])
    rows = plain_patches(layer, x)[:, stays].flatten(1)
    wanted = positions(y, spec)
    if layer.bias is not None or any(n.startswith(("body.conv", "body.short", "body.project")) for n in [name]):
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    fitted = torch.linalg.lstsq(rows, wanted, driver="gelsd").solution

    small = dp.slim(random, space, masks)
    grams = grams_of(network)
    compensate(small, space, masks, grams, ridge=1e-12)
    got = small.get_submodule(name)
    assert stays.sum() < len(stays)
    small_x = x.index_select(spec.channel_dim, stays.nonzero()[:, 0])
    found = positions(got(small_x), spec).detach()
    if layer.bias is None and grams.layers[name].norm is not None:  # the constant is in the running mean
        after = grams.layers[name].norm[0]
        before = random.get_submodule(after).running_mean[torch.from_numpy(keep[entry.outputs])]
        found = found + before - small.get_submodule(after).running_mean
    expected = (rows @ fitted)[:, torch.from_numpy(keep[entry.outputs])]
    assert torch.allclose(found, expected, atol=1e-6 * float(expected.abs().max()))


def test_grouped_blocks_are_fitted_each_on_its_own() -> None:
    _, _, space, random, call = prepared("grouped")
    masks = dp.Masks.random(space, keep=0.5, seed=1)
    small = dp.slim(random, space, masks)
    compensate(small, space, masks, grams_of("grouped"), ridge=1e-12)
    name = "body.grouped.0"
    x, y = read_by(random, name, call)
    entry = next(e for e in space.layers if e.name == name)
    keep = space.kept(masks)
    stays, made = (torch.from_numpy(keep[ids]).view(4, -1) for ids in (entry.inputs, entry.outputs))
    patches = plain_patches(random.get_submodule(name), x)  # type: ignore[arg-type]
    got = small.get_submodule(name).weight.detach().view(4, int(made.sum()) // 4, -1)
    for block in range(4):
        rows = patches.view(len(patches), 4, -1, 9)[:, block][:, stays[block]].flatten(1)
        wanted = y.movedim(1, -1).reshape(-1, 4, made.shape[1])[:, block][:, made[block]]
        rows, wanted = rows - rows.mean(0), wanted - wanted.mean(0)
        expected = torch.linalg.lstsq(rows, wanted, driver="gelsd").solution
        assert torch.allclose(rows @ got[block].T, rows @ expected, atol=1e-6)


def test_by_channel_mixes_channels_alike_at_every_tap() -> None:
    """Each dropped channel is replaced by one combination of the kept ones, whatever the tap."""
    _, _, space, random, call = prepared("plain")
    masks = dp.Masks.random(space, keep=0.6, seed=4)
    name = "body.2"
    entry = next(e for e in space.layers if e.name == name)
    stays = torch.from_numpy(space.kept(masks)[entry.inputs])
    made = torch.from_numpy(space.kept(masks)[entry.outputs])
    layer = random.get_submodule(name)
    x, _ = read_by(random, name, call)
    values = plain_patches(layer, x).transpose(1, 2).flatten(0, 1)  # (rows x taps, channels)
    kept = torch.cat([values[:, stays], values.new_ones(len(values), 1)], dim=1)
    mix = torch.linalg.lstsq(kept, values[:, ~stays], driver="gelsd").solution
    weight = layer.weight.detach()[made]
    expected = weight[:, stays] + torch.einsum("ohij,kh->okij", weight[:, ~stays], mix[:-1])
    constant = torch.einsum("ohij,h->o", weight[:, ~stays], mix[-1])
    small = dp.slim(random, space, masks)
    grams = grams_of("plain", mode="channel")
    compensate(small, space, masks, grams, ridge=1e-12)
    assert grams.layers[name].form == "channel"
    assert torch.allclose(small.get_submodule(name).weight, expected, atol=1e-8)
    assert torch.allclose(small.get_submodule(name).bias, layer.bias.detach()[made] + constant, atol=1e-8)


# ------------------------------------------------------------------ laws
@pytest.mark.parametrize("mode", ["full", "channel"])
@pytest.mark.parametrize("name", [*NETWORKS, *PADDED])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=2)
def test_masked_is_slim_when_compensated(name: str, mode: str, seed: int) -> None:
    _, _, space, random, call = prepared(name)
    masks = draw_masks(space, seed)
    before = snapshot(random)
    grams = few_rows(name, mode)
    assert_unchanged(random, before)
    small = dp.slim(random, space, masks)
    compensate(small, space, masks, grams, statistics=True)
    with torch.no_grad():
        narrow = forward(small, call)
        with dp.masked(random, space, masks, state=small):
            full = forward(random, call)
    assert all(bool(torch.isfinite(x).all()) for x in narrow)
    assert gap(narrow, full) < 1e-9
    assert_unchanged(random, before)


@pytest.mark.parametrize("name", ["residual", "grouped", "concat", "flatten", *PADDED])
def test_nothing_pruned_nothing_changed(name: str) -> None:
    _, _, space, random, _ = prepared(name)
    everything, grams = dp.Masks({}), grams_of(name)
    small = dp.slim(random, space, everything)
    compensate(small, space, everything, grams, statistics=True)
    propagate_bn(small, space, everything, grams)
    for key, value in random.state_dict().items():
        assert torch.equal(small.state_dict()[key], value)
    assert reconstruction_error(space, everything, grams) == 0.0


def test_duplicated_channels_cost_nothing() -> None:
    """Two groups of equal channels: one of each pair says it all, so the outputs come back exactly."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3, bias=False), nn.BatchNorm2d(5)).double()
    model.eval()
    with torch.no_grad():
        model[0].weight[4:] = model[0].weight[:4]
        model[0].bias[4:] = model[0].bias[:4]
    x = torch.randn(6, 3, 10, 10, dtype=torch.float64)
    space = dp.trace(model, x)
    masks = dp.Masks({"0": np.arange(8) < 4})
    grams = collect_grams(model, space, [(x, None)])
    small = dp.slim(model, space, masks)
    assert gap([small(x).detach()], [model(x).detach()]) > 0.1
    compensate(small, space, masks, grams, ridge=1e-9, statistics=True)
    assert gap([small(x).detach()], [model(x).detach()]) < 1e-6
    assert reconstruction_error(space, masks, grams, ridge=1e-9) < 1e-7
    worse = dp.Masks({"0": np.array([True, True, False, False, True, True, False, False])})
    assert reconstruction_error(space, worse, grams) > 0.05


def test_reconstruction_error_is_the_error_of_the_outputs() -> None:
    _, _, space, random, call = prepared("residual")
    masks = dp.Masks.random(space, keep=0.5, seed=2)
    only = dp.Masks({"body.conv3.0": masks["body.conv3.0"]})
    grams = grams_of("residual")
    name = next(m.layer for m in space.group("body.conv3.0").layers("reader"))
    x, y = read_by(random, name, call)
    small = dp.slim(random, space, only)
    compensate(small, space, only, grams)
    kept = torch.from_numpy(np.flatnonzero(only["body.conv3.0"]))
    found = small.get_submodule(name)(x[:, kept]).detach()
    left = (y - found) - (y - found).mean(dim=(0, 2, 3), keepdim=True)
    dense = y - y.mean(dim=(0, 2, 3), keepdim=True)
    assert reconstruction_error(space, only, grams) == pytest.approx(float(left.square().sum() / dense.square().sum()))


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_keeping_more_loses_less(seed: int) -> None:
    space, grams = prepared("residual").space, grams_of("residual")
    name = "body.conv3.0"  # its reader's outputs stay dense
    fewer = dp.Masks.random(space, keep=0.4, seed=seed)[name]
    more = fewer | (np.random.default_rng(seed).random(len(fewer)) < 0.5)
    errors = [reconstruction_error(space, dp.Masks({name: keep}), grams, ridge=1e-9) for keep in (more, fewer)]
    assert errors[0] <= errors[1] * (1 + 1e-6)


# ------------------------------------------------------------------ BN in closed form
def test_bn_statistics_are_those_of_the_data_where_the_inputs_are_the_dense_ones(digits: Digits) -> None:
    """Pruning the inner filters of one block: what its second convolution reads is the dense network's, less some."""
    model = copy.deepcopy(digits.model).double().eval()
    x = digits.calibration[0].double()
    inner = next(g for g in digits.space.groups if len(g.layers("filter")) == 1 and g.name != "conv1")
    grams = collect_grams(model, digits.space, [(x, None)], rows=EVERY)
    masks = dp.Masks({inner.name: np.arange(inner.size) % 2 == 0})
    reader = inner.layers("reader")[0].layer
    norm = grams.layers[reader].norm
    assert norm is not None
    dense_y = read_by(model, reader, ((x,), {}))[1]
    for statistics in (True, False):
        small = dp.slim(model, digits.space, masks)
        if statistics:
            compensate(small, digits.space, masks, grams, statistics=True)
        else:
            propagate_bn(small, digits.space, masks, grams)
        y = read_by(small, reader, ((x,), {}))[1]
        after, dense = small.get_submodule(norm[0]), model.get_submodule(norm[0])
        moved = y.mean(dim=(0, 2, 3)) - dense_y.mean(dim=(0, 2, 3))
        assert torch.allclose(after.running_mean - dense.running_mean, moved, atol=1e-9)
        ratio = y.var(dim=(0, 2, 3), correction=0) / dense_y.var(dim=(0, 2, 3), correction=0)
        assert torch.allclose(after.running_var / dense.running_var, ratio, rtol=1e-8)
        assert not torch.allclose(ratio, torch.ones_like(ratio), rtol=1e-2)


def test_propagating_after_compensating_changes_nothing_more() -> None:
    _, _, space, random, _ = prepared("resnet20_b")
    masks, grams = dp.Masks.random(space, keep=0.5, seed=0), grams_of("resnet20_b")
    one, two = dp.slim(random, space, masks), dp.slim(random, space, masks)
    compensate(one, space, masks, grams, statistics=True)
    compensate(two, space, masks, grams)
    propagate_bn(two, space, masks, grams)
    for key, value in one.state_dict().items():
        assert torch.allclose(two.state_dict()[key], value, rtol=1e-8, atol=1e-10), key


# ------------------------------------------------------------------ quality, on a trained network
def test_compensation_keeps_accuracy(digits: Digits) -> None:
    masks = dp.Masks.random(digits.space, keep=0.5, seed=0)
    batches = [digits.calibration]
    found = {"slim": dp.accuracy(dp.slim(digits.model, digits.space, masks), digits.validation, device="cpu")}
    model = copy.deepcopy(digits.model)
    for mode in ("full", "channel"):
        grams = collect_grams(model, digits.space, batches, mode=mode)  # type: ignore[arg-type]
        small = dp.slim(model, digits.space, masks)
        compensate(small, digits.space, masks, grams, statistics=True)
        found[mode] = dp.accuracy(small, digits.validation, device="cpu")
    assert found["full"] > found["channel"] > found["slim"]
