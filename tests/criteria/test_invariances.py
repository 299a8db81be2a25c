"""What a criterion's formula implies: scale, dead filters, twins, every kind of network."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import deap_prune as dp
from deap_prune.criteria import activation
from tests.helpers.networks import NETWORKS, Head, Keywords
from tests.helpers.plain_criteria import batches, conv_net
from tests.helpers.pruning import assert_unchanged, prepared, snapshot

SLOW = {"kl", "oracle", "attention"}
NAMES = tuple(dp.criteria())


def scores(net: nn.Module, names: tuple[str, ...], **options: Any) -> dict[str, np.ndarray]:
    data = [(x.double(), y) for x, y in batches()]
    return dict(dp.score(net, dp.trace(net, data[0][0]), data, criteria=names, **options)["0"])


@pytest.mark.parametrize(
    ("names", "degree"),
    [
        (("l1", "l2", "fpgm", "fermat"), 1),
        (("whc",), 2),
        (("cosine", "correlation", "lamp", "svd", "bn_scale", "bn_shift", "out_l1"), 0),
    ],
)
def test_scale_of_the_weights(names: tuple[str, ...], degree: int) -> None:
    net = conv_net().double()
    before = scores(net, names)
    net[0].weight.data *= 3
    for name, values in scores(net, names).items():
        np.testing.assert_allclose(values, 3.0**degree * before[name], rtol=1e-4, err_msg=name)


def test_scale_that_the_network_does_not_notice() -> None:
    """BN's scale and shift times 4, the next layer's columns divided by 4: what looks at the loss stays as it is."""
    net = conv_net().double().eval()
    names = tuple(n for n in NAMES if n != "attention")
    before, other = scores(net, names), copy.deepcopy(net)
    other[1].weight.data *= 4
    other[1].bias.data *= 4
    other[3].weight.data /= 4
    x = batches()[0][0].double()
    assert torch.allclose(net(x), other(x))
    grow = {"bn_scale": 4, "bn_shift": 4, "mean_activation": 4, "chip": 4, "out_l1": 0.25}
    follow_the_parameters = {"grasp"}  # the gradient's length depends on how a network is written down
    for name, values in scores(other, names).items():
        if name not in follow_the_parameters:
            np.testing.assert_allclose(values, grow.get(name, 1) * before[name], rtol=1e-4, atol=1e-12, err_msg=name)


def test_a_dead_filter_comes_last() -> None:
    """BN of scale and shift 0: nothing that looks at activations or gradients gives it more than any other."""
    net = conv_net().double()
    net[1].weight.data[2] = net[1].bias.data[2] = 0
    names = ("bn_scale", "bn_shift", "mean_activation", "apoz", "entropy", "hrank", "chip", "kl", "taylor_activation")
    names += ("taylor_gate", "taylor_weight", "group_fisher", "snip", "obd", "obd_c", "synflow", "thinet")
    found = scores(net, names)
    assert set(found) == set(names)
    for name, values in found.items():
        assert values[2] == values.min(), name
    assert abs(scores(net, ("oracle",))["oracle"][2]) < 1e-12


def test_twins_are_told_by_what_looks_for_them() -> None:
    """Of two filters that point alike, the smaller is the first to go; the larger stays."""
    net = conv_net().double()
    net[0].weight.data[4] = 0.5 * net[0].weight.data[1]
    found = scores(net, ("correlation", "cosine"))
    assert found["correlation"].argmin() == 4 and abs(found["correlation"][4]) < 1e-6
    assert found["correlation"][1] > 0.1
    assert set(found["cosine"].argsort()[:2]) == {1, 4}


def test_one_filter_that_fires_on_one_image_has_little_entropy() -> None:
    pooled = torch.zeros(50, 3)
    pooled[0, 0], pooled[:, 1], pooled[:25, 2] = 1.0, torch.linspace(0, 1, 50), 1.0
    low, high, two = activation.entropy(pooled).tolist()
    assert low < two < high
    assert np.isclose(two, np.log(2)) and np.isclose(high, np.log(10))
    assert float(activation.entropy(torch.ones(5, 1))) == 0


# ------------------------------------------------------------------ every network, with and without labels
@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("name", [n for n in NETWORKS if "resnet" not in n])
def test_every_network_is_scored(name: str, labels: bool) -> None:
    """Finite, one score a filter, the network as it was: whatever the layers, inputs and outputs."""
    model, inputs, space, _, _ = prepared(name)
    batch = tree_map(lambda x: torch.randn(5, *x.shape[1:]) if isinstance(x, Tensor) else x, inputs)

    def forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
        if isinstance(batch, dict):
            return model(**batch), None
        return (model(*batch) if isinstance(batch, tuple) else model(batch)), None

    def loss(outputs: Any, targets: None) -> Tensor:
        return sum((out.square().mean() for out in tree_leaves(outputs)), torch.zeros(()))

    weights = {"l1", "l2", "fpgm", "fermat", "cosine", "whc", "correlation", "lamp", "svd", "out_l1", "random"}
    before = snapshot(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # hardsigmoid has no second derivative in torch: grasp is absent
        table = dp.score(model, space, [batch], criteria=NAMES, forward=forward, loss=loss, labels=labels)
    assert_unchanged(model, before)
    for group in space.groups:
        found = table[group.name]
        everywhere = set(NAMES) - {"apoz", "hrank", "bn_scale", "bn_shift", "taylor_gate", "grasp"}
        if name in {"transposed", "standardised", "points", "points_by_name", "keywords"}:  # readers are not re-fitted
            everywhere -= {"compensation", "elimination"}
        if name == "auxiliary" and "head" in group.name:  # it runs in training only: its weights can be judged
            assert set(found) == {*weights, "bn_scale", "bn_shift", "kl", "oracle"}
        else:
            assert everywhere <= set(found)
        assert all(s.shape == (group.size,) and np.isfinite(s).all() for s in found.values())


def test_layers_that_are_called_by_keyword() -> None:
    """Every criterion says what it says of the same layers called by place."""
    found = []
    for named in (True, False):
        torch.manual_seed(0)
        model = Head(Keywords(named=named), 6, 7)
        data = (torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4]))
        found.append(dp.score(model, dp.trace(model, data[0]), data, criteria=NAMES))
    assert "body.points" in found[0].scores and set(found[0].criteria) == set(NAMES)
    for name, table in found[0].scores.items():
        assert set(table) == set(found[1][name])
        for criterion, values in table.items():
            np.testing.assert_array_equal(values, found[1][name][criterion], err_msg=f"{criterion} of {name}")


def test_no_second_derivative_is_said() -> None:
    model, inputs, space, _, _ = prepared("separable")
    data = (torch.randn(4, *inputs.shape[1:]), torch.zeros(4).long())
    with pytest.warns(UserWarning, match="no second derivatives of this network, so no 'hessian_gradient': .*hardsigm"):
        table = dp.score(model, space, data, criteria=("grasp", "l1"))
    assert set(table.criteria) == {"l1"}


@pytest.mark.parametrize("name", ["shared", "grouped", "transposed", "channels_last", "sequence", "points", "norms"])
def test_one_image_s_gradients_of_every_kind_of_layer(name: str) -> None:
    """Linear, grouped, transposed, one-dimensional, run twice, with a second argument: as image by image."""
    from deap_prune.criteria import collect
    from deap_prune.criteria.passes.weights import filter_rows

    _, inputs, space, model, _ = prepared(name)
    batch = tree_map(lambda x: torch.randn(5, *x.shape[1:], dtype=torch.float64), inputs)

    def forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
        return (model(*batch) if isinstance(batch, tuple) else model(batch)), None

    def loss(outputs: Any, targets: None) -> Tensor:
        return sum((out.square().sum(dim=1).mean() for out in tree_leaves(outputs)), torch.zeros(()))

    found = collect(model, space, [batch], needs=("gradient_square",), forward=forward, loss=loss)
    total = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for i in range(5):
        model.zero_grad()
        loss(forward(model, tree_map(lambda x, i=i: x[i : i + 1], batch))[0], None).backward()
        for n, p in model.named_parameters():
            total[n] += p.grad.square() / 5 if p.grad is not None else 0
    model.zero_grad()
    for group in space.groups:
        members = list(group.layers("filter"))
        wanted = [filter_rows(model, m, "weight", total[f"{m.layer}.weight"].detach()) for m in members]
        for (square,), rows in zip(
            found.of(group, "gradient_square"), [w for w in wanted if w is not None], strict=True
        ):
            torch.testing.assert_close(square, rows)


# ------------------------------------------------------------------ without labels
def test_without_labels_nothing_looks_at_them() -> None:
    net, data = conv_net().eval(), batches()
    space = dp.trace(net, data[0][0])
    names = tuple(n for n in NAMES if n != "random")

    def refuse(outputs: Tensor, targets: Tensor) -> Tensor:
        raise AssertionError("the loss was asked for")

    options = {"criteria": names, "labels": False}
    foreign = [(x, 1000 - y) for x, y in data]  # of classes that the network does not have
    found, other = (dp.score(net, space, d, loss=refuse, **options) for d in (data, foreign))
    for name in names:
        assert np.array_equal(found["0"][name], other["0"][name]), name
        assert np.ptp(found["0"][name]) > 0, name
    inputs = torch.cat([x for x, _ in data])  # inputs alone will do
    whole = dp.score(net, space, (inputs, torch.zeros(len(inputs)).long()), **options)
    alone = dp.score(net, space, inputs, **options)
    assert all(np.array_equal(alone["0"][n], whole["0"][n]) for n in names)


def test_a_search_without_labels() -> None:
    """Labels that mean nothing change nothing: the objective compares with the dense network as well."""
    net, data = conv_net().eval(), batches()
    options = {"criteria": ("taylor_gate", "oracle", "l2"), "objectives": ("agreement", "flops"), "labels": False}
    fronts = []
    for turn in (0, 1):
        given = [(x, y.roll(turn)) for x, y in data]
        result = dp.search(
            net,
            data[0][0],
            calibration=given,
            validation=given,
            population=4,
            generations=1,
            progress=False,
            device="cpu",
            **options,
        )
        fronts.append([s.values for s in result.front])
    assert fronts[0] == fronts[1]


def test_without_labels_taylor_is_the_change_of_the_outputs() -> None:
    """E[(w J^T e)^2] = |J w|^2: with many noise vectors the score nears the squared change of all outputs."""
    net, (x, _) = conv_net().double().eval(), batches()[0]
    x = x[:1].double()
    wanted = []
    for i in range(7):
        gate = torch.ones(7, 1, 1, dtype=torch.float64)

        def closed(g: Tensor, i: int = i, gate: Tensor = gate) -> Tensor:
            return net[3:](net[:3](x) * torch.where(torch.arange(7).view(-1, 1, 1) == i, g, gate))

        change = torch.autograd.functional.jacobian(closed, torch.ones(1, 1, 1, dtype=torch.float64))
        wanted.append(float(change.square().sum()))
    data, space = [(x.expand(4000, -1, -1, -1), torch.zeros(4000).long())], dp.trace(net, x)
    found = dp.score(net, space, data, criteria=("group_fisher",), labels=False)["0"]["group_fisher"]
    ratio = found / np.array(wanted)
    np.testing.assert_allclose(ratio / ratio.mean(), 1, atol=0.15)


# ------------------------------------------------------------------ one pass
def test_cheap_criteria_take_one_pass() -> None:
    net, data = conv_net().eval(), batches()
    space = dp.trace(net, data[0][0])
    calls: list[bool] = []

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        calls.append(torch.is_grad_enabled())
        return model(batch[0]), batch[1]

    def count(*names: str) -> int:
        calls.clear()
        dp.score(net, space, data, criteria=names, forward=forward)
        return len(calls)

    moments = {"compensation", "elimination"}
    cheap = [n for n in NAMES if n not in {*SLOW, *moments, "hrank", "chip", "thinet", "grasp", "synflow"}]
    assert len(cheap) >= 16
    assert count(*cheap) == len(data) and all(calls)
    assert count("l1", "bn_scale", "random", "out_l1") == 0
    assert count("apoz", "entropy", "mean_activation") == len(data) and not any(calls)
    assert count(*cheap, "grasp") == 2 * len(data)
    assert count("kl", "oracle") == count("kl") == count("oracle")  # a pass that two need is shared
    assert count("hrank", "chip") == count("chip")
    assert count(*moments) == count("compensation") == count("elimination")


def test_tables_with_a_row_an_image_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from deap_prune.criteria import collect

    net, data = conv_net().eval(), batches()
    space = dp.trace(net, data[0][0])
    from deap_prune.criteria.passes import layer_inputs

    monkeypatch.setattr(layer_inputs, "ROWS", 10)
    found = collect(net, space, data, needs=("activation_pooled", "activation_taylor", "group_taylor"))
    for need in ("activation_pooled", "activation_taylor", "group_taylor"):
        assert all(len(t) == 10 for group in space.groups for (t,) in found.of(group, need))


def test_images_are_weighed_alike_whatever_the_batches() -> None:
    """Per-image statistics do not depend on how the images were batched."""
    net, data = conv_net().double().eval(), [(x.double(), y) for x, y in batches()]
    space = dp.trace(net, data[0][0])
    names = tuple(n for n in NAMES if n not in {"taylor_weight", "taylor_gate", "attention", "thinet"})
    whole = [tuple(torch.cat(parts) for parts in zip(*data, strict=True))]
    a, b = (dp.score(net, space, d, criteria=names)["0"] for d in (data, whole))
    for name in names:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-6, atol=1e-12, err_msg=name)


def test_loss_of_the_users() -> None:
    net, data = conv_net().eval(), batches()
    space = dp.trace(net, data[0][0])
    a, b = (
        dp.score(net, space, data, criteria=("snip", "oracle"), loss=loss)["0"]
        for loss in (F.cross_entropy, lambda out, y: F.mse_loss(out, F.one_hot(y, 4).float()))
    )
    assert not np.allclose(a["snip"], b["snip"]) and not np.allclose(a["oracle"], b["oracle"])


def test_without_labels_small_batches_say_the_same() -> None:
    """Every batch has noise of its own: with the same for all, the mean over batches would not settle."""
    torch.manual_seed(0)
    head = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *head)
    x = torch.randn(256, 3, 8, 8)
    space = dp.trace(net, x[:1])
    splits = ([(x[i : i + size], None) for i in range(0, 256, size)] for size in (256, 4))
    tables = [dp.score(net, space, data, criteria=("group_fisher",), labels=False) for data in splits]
    whole, small = (table["0"]["group_fisher"] for table in tables)
    assert spearmanr(whole, small).statistic > 0.6


def test_a_dead_weight_comes_last() -> None:
    """A filter of zeros is no loss, whatever it is compared by."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with torch.no_grad():
        net[0].weight[5] = 0
    space = dp.trace(net, torch.randn(1, 3, 8, 8))
    names = ("l1", "l2", "fpgm", "fermat", "cosine", "whc", "lamp", "svd")
    table = dp.score(net, space, None, criteria=("correlation", *names[:2], *names[4:]))
    for name, scores in table["0"].items():
        assert scores.argmin() == 5, name


def test_signs_do_not_cancel_over_the_uses_of_a_filter() -> None:
    """A depthwise layer with two channels a filter: shifts of both signs are shifts all the same."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1))
    with torch.no_grad():
        net[2].bias.copy_(torch.tensor([1.0, -1, 2, -2, 3, -3, 4, -4]))
    space = dp.trace(net, torch.randn(1, 3, 8, 8))
    table = dp.score(net, space, None, criteria=("bn_shift",))
    np.testing.assert_allclose(table["0"]["bn_shift"], [1, 2, 3, 4])
