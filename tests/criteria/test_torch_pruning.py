"""Criteria that Torch-Pruning has, too: equal scores on a single layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch.nn.functional as F
from torch import Tensor, nn

import deap_prune as dp
from tests.helpers.plain_criteria import batches, conv_net, everything

tp = pytest.importorskip("torch_pruning")


@pytest.fixture
def net() -> nn.Sequential:
    return conv_net().eval()


def layer_alone(net: nn.Module, number: int = 0) -> Any:
    """Torch-Pruning's group of the first convolution, reduced to one layer: 0 filters, 1 BN, 2 next layer."""
    graph = tp.DependencyGraph().build_dependency(net, example_inputs=batches()[0][0])
    group = graph.get_pruning_group(net[0], tp.prune_conv_out_channels, idxs=list(range(7)))
    kinds = [nn.Conv2d, nn.BatchNorm2d, nn.Conv2d]
    items = [item for item in group if isinstance(item.dep.target.module, (nn.Conv2d, nn.BatchNorm2d))]
    assert [type(item.dep.target.module) for item in items] == kinds
    group._group[:] = [items[number]]
    return group


def ours(net: nn.Module, name: str, data: Any = None) -> np.ndarray:
    data = data or batches()
    return dp.score(net, dp.trace(net, data[0][0]), data, criteria=(name,))["0"][name]


def backward(net: nn.Module) -> tuple[Tensor, Tensor]:
    """Compute gradients of the mean loss over all images, and store them in the network."""
    x, y = everything(batches())
    net.zero_grad()
    F.cross_entropy(net(x), y).backward()
    return x, y


@pytest.mark.parametrize(
    ("name", "theirs", "number"),
    [
        ("l1", lambda: tp.importance.GroupMagnitudeImportance(p=1, normalizer=None), 0),
        ("out_l1", lambda: tp.importance.GroupMagnitudeImportance(p=1, normalizer=None), 2),
        ("lamp", lambda: tp.importance.LAMPImportance(), 0),
        ("bn_scale", lambda: tp.importance.BNScaleImportance(normalizer=None), 1),
    ],
)
def test_weights(name: str, theirs: Callable[[], Any], number: int, net: nn.Sequential) -> None:
    np.testing.assert_allclose(ours(net, name), theirs()(layer_alone(net, number)).numpy(), rtol=1e-4)


def test_l2_squared(net: nn.Sequential) -> None:
    theirs = tp.importance.GroupMagnitudeImportance(p=2, normalizer=None)(layer_alone(net))  # it omits the square root
    np.testing.assert_allclose(ours(net, "l2") ** 2, theirs.numpy(), rtol=1e-4)


def test_fpgm_of_weights_above_zero(net: nn.Sequential) -> None:
    """Torch-Pruning takes distances of |w|^p: the same for p = 1 if no weight is negative."""
    net[0].weight.data.abs_()
    theirs = tp.importance.FPGMImportance(p=1, normalizer=None)(layer_alone(net))
    np.testing.assert_allclose(ours(net, "fpgm"), theirs.numpy(), rtol=1e-4)


def test_first_order(net: nn.Sequential) -> None:
    """Its Taylor criterion on weights is SNIP without the total. With one sum inside it is ours before the square."""
    backward(net)
    data = [everything(batches())]
    separate = tp.importance.GroupTaylorImportance(normalizer="sum")(layer_alone(net)).numpy()
    np.testing.assert_allclose(ours(net, "snip", data), separate, rtol=1e-3)
    joint = tp.importance.GroupTaylorImportance(normalizer=None, multivariable=True)(layer_alone(net)).numpy()
    np.testing.assert_allclose(ours(net, "taylor_weight", data), joint**2, rtol=1e-3)


def test_second_order(net: nn.Sequential) -> None:
    """Its Fisher diagonal is a sum of squared gradients over images. Ours is half the mean."""
    net[0].bias = None  # its matrices contain the bias as a last column
    theirs = tp.importance.OBDCImportance(normalizer=None)
    theirs.modules.append(net[0])
    handles = (
        net[0].register_forward_pre_hook(theirs._save_input),
        net[0].register_full_backward_hook(theirs._save_grad_output),
    )
    x, _ = backward(net)
    theirs.step()
    for handle in handles:
        handle.remove()
    theirs.eps = 0
    mean = theirs(layer_alone(net)).numpy() / len(x)
    np.testing.assert_allclose(2 * ours(net, "obd"), mean, rtol=1e-3)


def test_second_order_of_one_image(net: nn.Sequential) -> None:
    """Its Hessian criterion keeps the last image only (1.6.1), so the test uses one image."""
    theirs = tp.importance.GroupHessianImportance(normalizer=None)
    x, y = batches()[0]
    F.cross_entropy(net(x[:1]), y[:1]).backward()
    theirs.accumulate_grad(net)
    np.testing.assert_allclose(2 * ours(net, "obd", [(x[:1], y[:1])]), theirs(layer_alone(net)).numpy(), rtol=1e-3)


def test_activation(net: nn.Sequential) -> None:
    theirs = tp.importance.ActivationImportance(normalizer=None)
    with theirs.compute_importance(net):
        backward(net)
    expected = theirs(layer_alone(net, 2)).detach().numpy()
    np.testing.assert_allclose(ours(net, "mean_activation"), expected, rtol=1e-4)
