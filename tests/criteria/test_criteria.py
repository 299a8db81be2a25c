"""Every criterion against a plain computation (tests/helpers), groups of several layers, data, messages."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CRITERIA, Digits
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.errors import DataError, RegistryError
from tests.helpers import plain_criteria, plain_reconstruction
from tests.helpers.networks import Head, conv, conv_bn
from tests.helpers.plain_criteria import batches, conv_net
from tests.helpers.pruning import prepared

PLAIN = plain_criteria.PLAIN | plain_reconstruction.PLAIN


def test_every_criterion_has_a_plain_computation() -> None:
    assert len(PLAIN) >= 28
    assert {*PLAIN, "random"} == set(dp.criteria())


@pytest.mark.parametrize("name", PLAIN)
def test_criterion_is_what_it_says(name: str) -> None:
    net, data = conv_net(), batches()
    space = dp.trace(net, data[0][0])
    found = dp.score(net, space, data, criteria=(name,))["0"][name]
    wanted = PLAIN[name](net, data)
    assert found.dtype == np.float64 and np.ptp(wanted) > 0
    small = 1e-4 * abs(wanted).max() if name in {"kl", "oracle", "grasp"} else 0  # differences of what is nearly equal
    np.testing.assert_allclose(found, wanted, rtol=2e-3 if name == "fermat" else 1e-4, atol=small)


def test_absent_where_it_does_not_apply() -> None:
    """No BN, no ReLU: no score, rather than zeros."""
    net, data = conv_net(), batches()
    table = dp.score(net, dp.trace(net, data[0][0]), data, criteria=tuple(dp.criteria()))
    everywhere = set(dp.criteria()) - {"bn_scale", "bn_shift", "taylor_gate", "apoz", "hrank"}
    assert set(table["0"]) == set(dp.criteria())
    assert set(table["3"]) == everywhere | {"apoz", "hrank"}
    assert set(table["5"]) == everywhere  # the linear layer reads the mean of a leaky ReLU: no zeros, no map
    assert set(table.criteria) == set(dp.criteria())


def test_share_of_zeros_needs_a_relu() -> None:
    """Outputs that are positive anyhow (sigmoid) have no zeros to count: absent, not 1 for every filter."""
    net = nn.Sequential(
        conv(3, 7), nn.Sigmoid(), conv(7, 6), nn.ReLU(), conv(6, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    table = dp.score(net, dp.trace(net, torch.randn(1, 3, 6, 6)), batches(), criteria=("apoz", "l1"))
    assert set(table["2"]) == {"apoz", "l1"}
    assert set(table["0"]) == {"l1"}


# ------------------------------------------------------------------ groups of several layers
@pytest.mark.parametrize(("reduction", "reduce"), [("mean", np.mean), ("sum", np.sum), ("max", np.max)])
def test_reduction_over_coupled_layers(reduction: str, reduce: Callable[..., np.ndarray]) -> None:
    model, _, space, _, _ = prepared("residual")
    data = (torch.randn(6, 3, 8, 8), torch.randint(0, 5, (6,)))
    table = dp.score(model, space, data, criteria=("l1", "bn_scale", "mean_activation"), reduction=reduction)
    body = model.body
    filters = [m[0].weight.detach().abs().sum((1, 2, 3)).numpy() for m in (body.conv2, body.short, body.conv4)]
    scales = [m[1].weight.detach().abs().numpy() for m in (body.conv2, body.short, body.conv4)]
    np.testing.assert_allclose(table["body.conv2.0"]["l1"], reduce(filters, axis=0), rtol=1e-5)
    np.testing.assert_allclose(table["body.conv2.0"]["bn_scale"], reduce(scales, axis=0), rtol=1e-5)
    read: dict[str, Tensor] = {}
    for name in ("body.conv3.0", "fc"):
        model.get_submodule(name).register_forward_pre_hook(lambda m, args, name=name: read.update({name: args[0]}))
    model.eval()(data[0])
    for name in read:
        model.get_submodule(name)._forward_pre_hooks.clear()
    model.train()
    layers = [read["body.conv3.0"].abs().mean((0, 2, 3)).detach().numpy(), read["fc"].abs().mean(0).detach().numpy()]
    np.testing.assert_allclose(table["body.conv2.0"]["mean_activation"], reduce(layers, axis=0), rtol=1e-4)


def test_first_layer_and_unknown_reduction() -> None:
    model, _, space, _, _ = prepared("residual")
    table = dp.score(model, space, criteria=("l1",), reduction="first")
    wanted = model.body.conv2[0].weight.detach().abs().sum((1, 2, 3)).numpy()
    np.testing.assert_allclose(table["body.conv2.0"]["l1"], wanted, rtol=1e-6)
    with pytest.raises(DataError, match="unknown reduction 'median'; known: mean, sum, max, first"):
        dp.score(model, space, criteria=("l1",), reduction="median")


def test_a_filter_is_all_its_positions() -> None:
    """Depthwise with two outputs a channel, and a linear layer after flatten: all that goes with the filter counts."""
    model, _, space, _, _ = prepared("separable")
    doubled = model.body.widen[0].weight.detach().flatten(1).reshape(6, 18)
    rows = [model.stem[0].weight, model.body.project[0].weight, doubled]
    wanted = np.mean([w.detach().flatten(1).norm(dim=1).numpy() for w in rows], axis=0)
    np.testing.assert_allclose(dp.score(model, space, criteria=("l2",))["stem.0"]["l2"], wanted, rtol=1e-5)
    model, _inputs, space, _, _ = prepared("flatten")
    table = dp.score(model, space, (torch.randn(9, 3, 8, 8), torch.zeros(9).long()), criteria=("mean_activation",))
    assert table["conv2"]["mean_activation"].shape == (5,)


def test_a_layer_used_twice_and_two_outputs() -> None:
    model, _, space, _, _ = prepared("shared")
    data = (torch.randn(6, 3, 8, 8), torch.randint(0, 5, (6,)))
    assert np.isfinite(dp.score(model, space, data)["stem.0"]["mean_activation"]).all()
    model, _, space, _, _ = prepared("sequence")
    table = dp.score(
        model,
        space,
        (torch.randn(6, 2, 12), torch.randint(0, 2, (6,))),
        criteria=("taylor_weight",),
        forward=lambda m, batch: (m(batch[0]), batch[1]),
        loss=lambda out, y: F.cross_entropy(out["a"], y) + F.cross_entropy(out["b"], y),
    )
    assert all(by["taylor_weight"].min() >= 0 < by["taylor_weight"].max() for by in table.scores.values())


# ------------------------------------------------------------------ data
def test_batches_and_tensors_agree(digits: Digits) -> None:
    x, y = digits.calibration
    loader = [(x[i : i + 25], y[i : i + 25]) for i in range(0, 100, 25)]
    names = ("mean_activation", "apoz", "l1")
    a, b = (dp.score(digits.model, digits.space, data, criteria=names) for data in ((x, y), iter(loader)))
    for group in a.scores:
        for name in names:
            np.testing.assert_allclose(a[group][name], b[group][name], rtol=1e-4)


def test_trained_filters_are_told_apart(digits: Digits) -> None:
    """Without the quarter that matters most a network is worse than without the other end, over three criteria."""
    evaluate = digits.evaluator(objectives=("loss",), recalibrate="data", compensate=None)
    inner = [g.name for g in digits.space.groups if len(g.layers("filter")) == 1]
    best, worst = [], []
    for name in ("l1", "taylor_gate", "mean_activation"):
        ranks = {g: digits.scores[g][name].argsort().argsort() for g in inner}
        n = {g: len(ranks[g]) for g in inner}
        best += evaluate(dp.Masks({g: ranks[g] >= n[g] // 4 for g in inner}))
        worst += evaluate(dp.Masks({g: ranks[g] < n[g] - n[g] // 4 for g in inner}))
    assert sum(best) < sum(worst), (best, worst)


def test_faint_filters_come_last(digits: Digits) -> None:
    """A random half of each inner layer's filters is damped by a thousand: criteria are not upside down."""
    model, rng = copy.deepcopy(digits.model), np.random.default_rng(0)
    inner = [g for g in digits.space.groups if len(g.layers("filter")) == 1]
    faint = {g.name: rng.permutation(g.size) < g.size // 2 for g in inner}
    with torch.no_grad():
        for name, chosen in faint.items():
            norm = model.get_submodule(name.replace("conv", "bn"))
            for tensor in (model.get_submodule(name).weight, norm.weight, norm.bias):
                tensor[torch.from_numpy(chosen)] *= 1e-3
    names = [name for name in CRITERIA if name != "apoz"]  # how often a filter is silent: not how loud it is
    scores = dp.score(model, digits.space, digits.calibration, criteria=names)
    for group, chosen in faint.items():
        for name in names:
            ranks = scores[group][name].argsort().argsort()  # means: a loud filter of a trained network may be idle
            assert ranks[chosen].mean() < ranks[~chosen].mean() - len(chosen) / 3, (group, name)


def test_table_goes_to_a_file_and_back(digits: Digits, tmp_path: object) -> None:
    path = f"{tmp_path}/scores.npz"
    digits.scores.save(path)
    again = dp.ScoreTable.load(path)
    assert list(again.scores) == list(digits.scores.scores)
    for group, by in digits.scores.scores.items():
        assert list(again[group]) == list(by)
        assert all(np.array_equal(again[group][name], by[name]) for name in by)


def test_messages(digits: Digits) -> None:
    model, space = digits.model, digits.space
    with pytest.raises(
        RegistryError, match=r"unknown criterion 'taylor_gates'; did you mean 'taylor_gate'\? known: apoz"
    ):
        dp.score(model, space, criteria=("taylor_gates",))
    with pytest.raises(DataError, match="no criteria were chosen"):
        dp.score(model, space, criteria=())
    with pytest.raises(DataError, match="calibration is empty"):
        dp.score(model, space, None, criteria=("apoz",))
    x, y = digits.calibration
    with pytest.raises(DataError, match="calibration has labels from 1 to 10; the network has classes 0 to 9"):
        dp.score(model, space, (x, y + 1), criteria=("apoz",))
    with pytest.raises(DataError, match="calibration: 100 inputs but 99 targets"):
        dp.score(model, space, (x, y[:99]), criteria=("apoz",))
    with pytest.raises(DataError, match="calibration holds values that are not finite"):
        dp.score(model, space, (x / 0, y), criteria=("apoz",))


def test_a_broken_criterion_is_named() -> None:
    model, _, space, _, _ = prepared("plain")
    dp.register_criterion("broken", needs="weight")(lambda weight: weight.sum(dim=1) / 0)
    dp.register_criterion("misshapen", needs=("weight",))(lambda weight: weight)
    said = {
        "broken": r"criterion 'broken' gave scores that are not finite for 'stem.0'",
        "misshapen": r"criterion 'misshapen' gave scores of shape \(6, 27\) for 'stem.0'; .* filter, shape \(6,\)",
    }
    try:
        for name, message in said.items():
            with pytest.raises(DataError, match=message):
                dp.score(model, space, criteria=(name,))
    finally:
        from deap_prune.criteria import CRITERIA

        CRITERIA.remove("broken")
        CRITERIA.remove("misshapen")


def test_a_criterion_may_give_a_numpy_array() -> None:
    model, _, space, _, _ = prepared("plain")
    dp.register_criterion("mine", needs="weight")(lambda weight: np.abs(weight.numpy()).sum(1))
    try:
        scores = dp.score(model, space, criteria=("mine", "l1"))
        assert all(np.allclose(by["mine"], by["l1"]) for by in scores.scores.values())
    finally:
        from deap_prune.criteria import CRITERIA

        CRITERIA.remove("mine")


def test_needs_of_different_layers_are_not_left_out_silently(digits: Digits) -> None:
    """Beside other criteria it would be missing from the blend, and nobody would know."""
    dp.register_criterion("mixed", needs=("weight", "activation_mean"))(lambda weight, mean: mean)
    try:
        with pytest.raises(DataError, match="'mixed' applies nowhere: no layer has weight and activation_mean at once"):
            dp.score(digits.model, digits.space, digits.calibration, criteria=("l1", "mixed"))
    finally:
        from deap_prune.criteria import CRITERIA

        CRITERIA.remove("mixed")


def test_fermat_point_on_a_filter() -> None:
    """Weiszfeld's iteration may land on a point of the set: no NaN, and the distance there is 0."""
    net = Head(nn.Sequential(conv_bn(6, 5, 1), nn.ReLU()), 6, 5)
    with torch.no_grad():
        net.body[0][0].weight.zero_()
        for i, sign in ((0, 1.0), (1, -1.0), (2, 1.0), (3, -1.0)):
            net.body[0][0].weight[i, i // 2] = sign
    space = dp.trace(net, torch.randn(1, 3, 8, 8))
    found = dp.score(net, space, criteria=("fermat",))["body.0.0"]["fermat"]
    np.testing.assert_allclose(found, [1, 1, 1, 1, 0], atol=1e-5)
