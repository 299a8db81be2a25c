"""Score tables: where criteria apply, groups of several layers, data, files, and messages."""

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
from deap_prune.criteria import CRITERIA as REGISTRY
from deap_prune.errors import DataError, RegistryError
from tests.helpers.networks import conv
from tests.helpers.plain_criteria import batches, conv_net
from tests.helpers.pruning import prepared


def test_criteria_are_absent_where_they_do_not_apply() -> None:
    """Without BN or ReLU there is no score, rather than a score of zero."""
    net, data = conv_net(), batches()
    table = dp.score(net, dp.trace(net, data[0][0]), data, criteria=tuple(dp.criteria()))
    in_all_groups = set(dp.criteria()) - {"bn_scale", "bn_shift", "taylor_gate", "apoz", "hrank"}
    assert set(table["0"]) == set(dp.criteria())
    assert set(table["3"]) == in_all_groups | {"apoz", "hrank"}
    assert set(table["5"]) == in_all_groups  # the linear layer reads the mean of a leaky ReLU: no zeros, no map
    assert set(table.criteria) == set(dp.criteria())


def test_apoz_needs_a_relu() -> None:
    """After a sigmoid all activations are positive: apoz is absent, rather than 1 for every filter."""
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
    inputs: dict[str, Tensor] = {}
    for name in ("body.conv3.0", "fc"):
        model.get_submodule(name).register_forward_pre_hook(lambda m, args, name=name: inputs.update({name: args[0]}))
    model.eval()(data[0])
    for name in inputs:
        model.get_submodule(name)._forward_pre_hooks.clear()
    model.train()
    layers = [
        inputs["body.conv3.0"].abs().mean((0, 2, 3)).detach().numpy(),
        inputs["fc"].abs().mean(0).detach().numpy(),
    ]
    np.testing.assert_allclose(table["body.conv2.0"]["mean_activation"], reduce(layers, axis=0), rtol=1e-4)


def test_reduction_to_the_first_layer_and_unknown_reduction() -> None:
    model, _, space, _, _ = prepared("residual")
    table = dp.score(model, space, criteria=("l1",), reduction="first")
    expected = model.body.conv2[0].weight.detach().abs().sum((1, 2, 3)).numpy()
    np.testing.assert_allclose(table["body.conv2.0"]["l1"], expected, rtol=1e-6)
    with pytest.raises(DataError, match="unknown reduction 'median'; known: mean, sum, max, first"):
        dp.score(model, space, criteria=("l1",), reduction="median")


def test_all_channels_of_a_filter_count() -> None:
    """A depthwise layer with two outputs per channel, and a linear layer after a flatten."""
    model, _, space, _, _ = prepared("separable")
    doubled = model.body.widen[0].weight.detach().flatten(1).reshape(6, 18)
    rows = [model.stem[0].weight, model.body.project[0].weight, doubled]
    expected = np.mean([w.detach().flatten(1).norm(dim=1).numpy() for w in rows], axis=0)
    np.testing.assert_allclose(dp.score(model, space, criteria=("l2",))["stem.0"]["l2"], expected, rtol=1e-5)
    model, _, space, _, _ = prepared("flatten")
    table = dp.score(model, space, (torch.randn(9, 3, 8, 8), torch.zeros(9).long()), criteria=("mean_activation",))
    assert table["conv2"]["mean_activation"].shape == (5,)


def test_a_layer_that_runs_twice_and_two_outputs() -> None:
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
def test_batches_and_tensors_give_the_same_scores(digits: Digits) -> None:
    x, y = digits.calibration
    loader = [(x[i : i + 25], y[i : i + 25]) for i in range(0, 100, 25)]
    names = ("mean_activation", "apoz", "l1")
    tensors, batched = (dp.score(digits.model, digits.space, data, criteria=names) for data in ((x, y), iter(loader)))
    for group in tensors.scores:
        for name in names:
            np.testing.assert_allclose(tensors[group][name], batched[group][name], rtol=1e-4)


def test_high_scores_matter_more_than_low_ones(digits: Digits) -> None:
    """Pruning the quarter with the highest scores hurts more than pruning the lowest quarter, over three criteria."""
    evaluate = digits.evaluator(objectives=("loss",), recalibrate="data", compensate=None)
    inner = [g.name for g in digits.space.groups if len(g.layers("filter")) == 1]
    without_lowest, without_highest = [], []
    for name in ("l1", "taylor_gate", "mean_activation"):
        ranks = {g: digits.scores[g][name].argsort().argsort() for g in inner}
        n = {g: len(ranks[g]) for g in inner}
        without_lowest += evaluate(dp.Masks({g: ranks[g] >= n[g] // 4 for g in inner}))
        without_highest += evaluate(dp.Masks({g: ranks[g] < n[g] - n[g] // 4 for g in inner}))
    assert sum(without_lowest) < sum(without_highest), (without_lowest, without_highest)


def test_damped_filters_have_low_scores(digits: Digits) -> None:
    """A random half of each inner layer's filters is scaled by 1/1000: the sign of every criterion is right."""
    model, rng = copy.deepcopy(digits.model), np.random.default_rng(0)
    inner = [g for g in digits.space.groups if len(g.layers("filter")) == 1]
    damped = {g.name: rng.permutation(g.size) < g.size // 2 for g in inner}
    with torch.no_grad():
        for name, rows in damped.items():
            norm = model.get_submodule(name.replace("conv", "bn"))
            for tensor in (model.get_submodule(name).weight, norm.weight, norm.bias):
                tensor[torch.from_numpy(rows)] *= 1e-3
    names = [name for name in CRITERIA if name != "apoz"]  # it counts zeros, which scaling does not change
    scores = dp.score(model, digits.space, digits.calibration, criteria=names)
    for group, rows in damped.items():
        for name in names:
            ranks = scores[group][name].argsort().argsort()  # compare means: some undamped filters matter little
            assert ranks[rows].mean() < ranks[~rows].mean() - len(rows) / 3, (group, name)


def test_a_saved_table_is_loaded_unchanged(digits: Digits, tmp_path: object) -> None:
    path = f"{tmp_path}/scores.npz"
    digits.scores.save(path)
    loaded = dp.ScoreTable.load(path)
    assert list(loaded.scores) == list(digits.scores.scores)
    for group, by in digits.scores.scores.items():
        assert list(loaded[group]) == list(by)
        assert all(np.array_equal(loaded[group][name], by[name]) for name in by)


def test_messages(digits: Digits) -> None:
    model, space = digits.model, digits.space
    with pytest.raises(
        RegistryError,
        match=r"'taylor_gates'; did you mean 'taylor_gate'\? known: .*and \d+ more \(dp.criteria\(\) lists all\)",
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


def test_errors_name_the_broken_criterion() -> None:
    model, _, space, _, _ = prepared("plain")
    dp.register_criterion("broken", needs="weight")(lambda weight: weight.sum(dim=1) / 0)
    dp.register_criterion("misshapen", needs=("weight",))(lambda weight: weight)
    messages = {
        "broken": r"criterion 'broken' gave scores that are not finite for 'stem.0'",
        "misshapen": r"criterion 'misshapen' gave scores of shape \(6, 27\) for 'stem.0'; .* filter, shape \(6,\)",
    }
    try:
        for name, message in messages.items():
            with pytest.raises(DataError, match=message):
                dp.score(model, space, criteria=(name,))
    finally:
        REGISTRY.remove("broken")
        REGISTRY.remove("misshapen")


def test_a_criterion_may_return_a_numpy_array() -> None:
    model, _, space, _, _ = prepared("plain")
    dp.register_criterion("mine", needs="weight")(lambda weight: np.abs(weight.numpy()).sum(1))
    try:
        scores = dp.score(model, space, criteria=("mine", "l1"))
        assert all(np.allclose(by["mine"], by["l1"]) for by in scores.scores.values())
    finally:
        REGISTRY.remove("mine")


def test_statistics_of_different_layers_are_an_error(digits: Digits) -> None:
    """Without the error the criterion would be missing from the blends silently."""
    dp.register_criterion("mixed", needs=("weight", "activation_mean"))(lambda weight, mean: mean)
    try:
        with pytest.raises(
            DataError, match="'mixed' applies to no group: no single layer has weight and activation_mean"
        ):
            dp.score(digits.model, digits.space, digits.calibration, criteria=("l1", "mixed"))
    finally:
        REGISTRY.remove("mixed")
