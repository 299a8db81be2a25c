"""Every criterion, against a plain computation of its own: loops, hooks and autograd, nothing from the package."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Digits
from helpers import prepared
from networks import Head, conv, conv_bn
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.errors import DataError, RegistryError

Score = Callable[[nn.Module, list[tuple[Tensor, Tensor]]], np.ndarray]


def conv_net() -> nn.Sequential:
    """conv1 - BN - ReLU - conv2 - ReLU - conv3 (no BN) - leaky ReLU - pool - fc: random, BN statistics and all."""
    net = nn.Sequential(
        conv(3, 7),
        nn.BatchNorm2d(7),
        nn.ReLU(),
        conv(7, 6),
        nn.ReLU(),
        conv(6, 5),
        nn.LeakyReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    )
    with torch.no_grad():
        for tensor in (*net[1].parameters(), net[1].running_mean, net[1].running_var):
            tensor.copy_(torch.rand_like(tensor) + 0.2)
        net[1].weight.mul_(torch.tensor([1.0, -1, 1, -1, 1, 1, -1]))
    return net


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 3, 6, 6, generator=generator), torch.randint(0, 4, (n,), generator=generator))
        for n in (8, 8, 5)
    ]


def l1(net: nn.Module, data: list[tuple[Tensor, Tensor]]) -> np.ndarray:
    return np.array([sum(abs(w) for w in f.ravel()) for f in net[0].weight.detach().numpy()])


def l2(net: nn.Module, data: list[tuple[Tensor, Tensor]]) -> np.ndarray:
    return np.array([sum(w * w for w in f.ravel()) ** 0.5 for f in net[0].weight.detach().numpy()])


def fpgm(net: nn.Module, data: list[tuple[Tensor, Tensor]]) -> np.ndarray:
    filters = net[0].weight.detach().numpy().reshape(7, -1)
    return np.array([sum(np.linalg.norm(a - b) for b in filters) for a in filters])


def fermat(net: nn.Module, data: list[tuple[Tensor, Tensor]]) -> np.ndarray:
    from scipy.optimize import minimize

    filters = net[0].weight.detach().double().numpy().reshape(7, -1)
    found = minimize(lambda x: np.linalg.norm(filters - x, axis=1).sum(), filters.mean(axis=0), tol=1e-14)
    return np.linalg.norm(filters - found.x, axis=1)


def bn_scale(net: nn.Module, data: list[tuple[Tensor, Tensor]]) -> np.ndarray:
    return np.array([abs(float(g)) for g in net[1].weight.detach()])


def gradients(net: nn.Module, data: list[tuple[Tensor, Tensor]], *names: str) -> list[dict[str, Tensor]]:
    net = copy.deepcopy(net).eval()
    found = []
    for x, y in data:
        values = [net.get_parameter(n) for n in names]
        grads = torch.autograd.grad(F.cross_entropy(net(x), y), values)
        found.append({n: v.detach() * g for n, v, g in zip(names, values, grads, strict=True)})
    return found


def taylor_weight(net: nn.Module, data: list[tuple[Tensor, Tensor]]) -> np.ndarray:
    parts = gradients(net, data, "0.weight")
    return np.mean([[float(f.sum()) ** 2 for f in part["0.weight"]] for part in parts], axis=0)


def taylor_gate(net: nn.Module, data: list[tuple[Tensor, Tensor]]) -> np.ndarray:
    """As the paper says it: a gate of 1 on the BN's output, and the gradient with respect to it."""
    net, found = copy.deepcopy(net).eval(), []
    for x, y in data:
        gate = torch.ones(7, 1, 1, requires_grad=True)
        loss = F.cross_entropy(net[2:](net[:2](x) * gate), y)
        found.append(torch.autograd.grad(loss, gate)[0].ravel().numpy() ** 2)
    return np.mean(found, axis=0)


def activations(net: nn.Module, data: list[tuple[Tensor, Tensor]]) -> np.ndarray:
    """(filters, all images and positions) of what the second convolution reads."""
    net, found = copy.deepcopy(net).eval(), []
    handle = net[3].register_forward_hook(lambda layer, args, out: found.append(args[0].detach()))
    for x, _ in data:
        net(x)
    handle.remove()
    return torch.cat(found).transpose(0, 1).flatten(1).numpy()


def mean_activation(net: nn.Module, data: list[tuple[Tensor, Tensor]]) -> np.ndarray:
    return np.abs(activations(net, data)).mean(axis=1)


def apoz(net: nn.Module, data: list[tuple[Tensor, Tensor]]) -> np.ndarray:
    return 1 - (activations(net, data) == 0).mean(axis=1)


PLAIN: dict[str, Score] = {
    f.__name__: f for f in (l1, l2, fpgm, fermat, bn_scale, taylor_weight, taylor_gate, mean_activation, apoz)
}


def test_every_criterion_has_a_plain_computation() -> None:
    assert {*PLAIN, "random"} == set(dp.criteria())


@pytest.mark.parametrize("name", PLAIN)
def test_criterion_is_what_it_says(name: str) -> None:
    net, data = conv_net(), batches()
    space = dp.trace(net, data[0][0])
    found = dp.score(net, space, data, criteria=(name,))["0"][name]
    wanted = PLAIN[name](net, data)
    assert found.dtype == np.float64 and np.ptp(wanted) > 0
    np.testing.assert_allclose(found, wanted, rtol=2e-3 if name == "fermat" else 1e-4)


def test_absent_where_it_does_not_apply() -> None:
    """No BN, no ReLU: no score, rather than zeros."""
    net, data = conv_net(), batches()
    table = dp.score(net, dp.trace(net, data[0][0]), data, criteria=tuple(dp.criteria()))
    everywhere = {"l1", "l2", "fpgm", "fermat", "taylor_weight", "mean_activation", "random"}
    assert set(table["0"]) == everywhere | {"bn_scale", "taylor_gate", "apoz"}
    assert set(table["3"]) == everywhere | {"apoz"}
    assert set(table["5"]) == everywhere  # the linear layer reads the mean of a leaky ReLU
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
    """Removing the filters that matter most hurts more: criteria are not upside down."""
    evaluate = digits.evaluator(objectives=("loss",), recalibrate=None)
    inner = [g.name for g in digits.space.groups if len(g.layers("filter")) == 1]
    for name in ("l1", "taylor_gate", "mean_activation"):
        ranks = {g: digits.scores[g][name].argsort().argsort() for g in inner}
        n = {g: len(ranks[g]) for g in inner}
        best = dp.Masks({g: ranks[g] >= n[g] // 2 for g in inner})
        worst = dp.Masks({g: ranks[g] < n[g] // 2 for g in inner})
        assert evaluate(best) < evaluate(worst), name


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
    try:
        for name in ("broken", "misshapen"):
            with pytest.raises(DataError, match=f"criterion '{name}' gave scores of shape .* for 'stem.0' .6 filters"):
                dp.score(model, space, criteria=(name,))
    finally:
        from deap_prune.criteria import CRITERIA

        CRITERIA.remove("broken")
        CRITERIA.remove("misshapen")


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
