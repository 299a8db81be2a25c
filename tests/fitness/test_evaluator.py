"""The evaluator: the evaluated network is the delivered one, and its values equal those computed by hand."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Digits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.errors import DataError, MaskError
from deap_prune.structure.inputs import forward
from tests.helpers.networks import NETWORKS, plain_example
from tests.helpers.pruning import assert_unchanged, draw_masks, gap, prepare, prepared, snapshot


# ------------------------------------------------------------------ law 1, for evaluated networks
def tuple_forward(model: nn.Module, batch: Any) -> tuple[list[Tensor], Tensor]:
    return forward(model, batch), torch.zeros(1)


def check_slim_is_masked(model: nn.Module, space: dp.PruningSpace, call: Any, seed: int) -> None:
    """The slim network and the user's model under the mask, both with statistics of the pruned network."""
    masks = draw_masks(space, seed)
    evaluate = dp.Evaluator(
        model, space, calibration=[call], objectives=("flops",), forward=tuple_forward, device="cpu"
    )
    before = snapshot(model)
    with torch.no_grad():
        small = forward(evaluate.slim(masks), call)
        with evaluate.masked(masks) as network:
            full = forward(network, call)
    assert network is model
    assert gap(small, full) < 1e-9
    assert_unchanged(model, before)


@pytest.mark.parametrize("name", NETWORKS)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=3)
def test_the_evaluated_slim_and_masked_networks_agree(name: str, seed: int) -> None:
    _, _, space, random, call = prepared(name)
    check_slim_is_masked(random, space, call, seed)


@pytest.mark.parametrize("norm", [nn.SyncBatchNorm, nn.BatchNorm2d])
def test_statistics_of_layers_that_stay_dense_are_re_estimated_too(norm: type[nn.Module]) -> None:
    """For normalisation layers after layers that are narrowed."""
    _, _, space, random, call = prepare(plain_example(norm(8)))
    check_slim_is_masked(random, space, call, 0)


def test_training_mode_and_wrapping_do_not_matter(digits: Digits) -> None:
    model = nn.DataParallel(copy.deepcopy(digits.model)).train()
    evaluate = dp.Evaluator(
        model, digits.space, calibration=digits.calibration, validation=digits.validation, device="cpu"
    )
    masks = dp.Masks.random(digits.space, keep=0.7)
    assert evaluate(masks) == digits.evaluator()(masks)
    before = snapshot(model)
    with evaluate.masked(masks) as network, torch.no_grad():
        assert not any(m.training for m in network.modules())
        outputs = network.module(digits.validation[0])  # the wrapper itself would bring inputs to a GPU
    assert_unchanged(model, before)
    small = evaluate.slim(masks)
    assert not small.training
    with torch.no_grad():
        assert torch.allclose(outputs, small(digits.validation[0]), atol=1e-4)


# ------------------------------------------------------------------ values by hand
def test_objectives_by_hand(digits: Digits) -> None:
    names = ("accuracy", "loss", "agreement", "flops", "params")
    evaluate = digits.evaluator(objectives=names, batch_size=64)
    masks = dp.Masks.random(digits.space, keep=0.8, seed=2)
    values = dict(zip(names, evaluate(masks), strict=True))
    x, y = digits.validation
    with torch.no_grad():
        pruned, dense = evaluate.slim(masks)(x), copy.deepcopy(digits.model).eval()(x)
    assert values["accuracy"] == (pruned.argmax(1) == y).double().mean()
    assert np.isclose(values["loss"], float(F.cross_entropy(pruned, y)), rtol=1e-5)
    p, q = dense.softmax(1), pruned.softmax(1)
    assert np.isclose(values["agreement"], float((p * (p / q).log()).sum(1).mean()), rtol=1e-3)
    assert values["flops"] == dp.flops(digits.space, masks) / digits.space.flops
    assert values["params"] == dp.params(digits.space, masks) / digits.space.params
    assert evaluate.names == names and evaluate.weights == (1, -1, -1, -1, -1)


def test_values_of_the_dense_network(digits: Digits) -> None:
    evaluate = digits.evaluator(objectives=("accuracy", "agreement", "flops"))
    accuracy = dp.accuracy(digits.model, digits.validation, device="cpu")
    assert evaluate.dense["values"] == {"accuracy": pytest.approx(accuracy), "agreement": 0.0, "flops": 1.0}
    assert (evaluate.dense["flops"], evaluate.dense["params"]) == (digits.space.flops, digits.space.params)
    plain = digits.evaluator(recalibrate=None, calibration=None)
    assert plain(dp.Masks({})) == (pytest.approx(accuracy), 1.0)
    x, y = digits.splits.test or digits.validation
    assert plain.measure(plain.network, dp.Masks({}), (x, y))[0] == pytest.approx(
        dp.accuracy(digits.model, (x, y), device="cpu")
    )


def statistics(network: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in network.state_dict().items() if k.endswith(("running_mean", "running_var"))}


@pytest.mark.parametrize("batches", [1, 2, 4])
def test_bn_statistics_are_plain_averages(batches: int, digits: Digits) -> None:
    x, _y = digits.calibration
    masks = dp.Masks.random(digits.space, keep=0.5)
    size = len(x) // batches
    small = digits.evaluator(batch_size=size, compensate=None).slim(masks)
    parts = []
    for k in range(batches):
        plain = dp.slim(digits.model, digits.space, masks)
        for layer in plain.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0  # the statistics become the batch's own
        with torch.no_grad():
            plain.train()(x[k * size : (k + 1) * size])
        parts.append(statistics(plain))
    for name, value in statistics(small).items():
        expected = torch.stack([part[name] for part in parts]).mean(0)
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    momenta = {m.momentum for m in small.modules() if isinstance(m, nn.BatchNorm2d)}
    assert momenta == {m.momentum for m in digits.model.modules() if isinstance(m, nn.BatchNorm2d)}


def test_bn_re_estimation_helps_and_is_optional(digits: Digits) -> None:
    masks = dp.Masks.random(digits.space, keep=0.75)
    with_data, without = (digits.evaluator(recalibrate=r, compensate=None) for r in ("data", None))
    assert with_data(masks)[0] > without(masks)[0]
    raw = dp.slim(digits.model, digits.space, masks).state_dict()
    assert all(torch.equal(v, raw[k]) for k, v in without.slim(masks).state_dict().items())
    assert (with_data.settings["recalibrate"], without.settings["recalibrate"]) == ("data", None)


def test_a_calibration_set_one_larger_than_a_batch() -> None:
    """No batch of a single sample: BN has no variance there."""
    model, _, space, _, _ = prepared("sequence")
    data = (torch.randn(9, 2, 12), torch.zeros(9).long())
    evaluate = dp.Evaluator(
        model,
        space,
        calibration=data,
        objectives=("flops",),
        batch_size=4,
        device="cpu",
        forward=lambda m, batch: (m(batch[0])["a"], batch[1]),
    )
    small = evaluate.slim(dp.Masks.random(space))
    assert all(bool(torch.isfinite(v).all()) for v in small.state_dict().values())


def test_batch_size_changes_no_value_without_re_estimation(digits: Digits) -> None:
    masks = dp.Masks.random(digits.space, keep=0.9)
    options: dict[str, Any] = {"recalibrate": None, "compensate": None, "objectives": ("loss",)}
    values = [digits.evaluator(**options, batch_size=n)(masks)[0] for n in (7, 64, 500)]
    np.testing.assert_allclose(values, values[0], rtol=1e-5)


# ------------------------------------------------------------------ costs and masks
def test_costs_alone_need_no_data() -> None:
    model, _, space, _, _ = prepared("residual")
    evaluate = dp.Evaluator(model, space, objectives=("flops", "params"), recalibrate=None, device="cpu")
    masks = dp.Masks.random(space)
    assert evaluate(masks) == (dp.flops(space, masks) / space.flops, dp.params(space, masks) / space.params)
    assert evaluate.counters.samples == 0


def test_masks_that_do_not_fit(digits: Digits) -> None:
    with pytest.raises(MaskError, match="no filter group 'layer9'"):
        digits.evaluator()(dp.Masks({"layer9": [True]}))


# ------------------------------------------------------------------ devices
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")
def test_cuda_gives_the_values_of_the_cpu(digits: Digits) -> None:
    names = ("loss", "flops")
    on_cpu, on_cuda = (digits.evaluator(objectives=names, device=d) for d in ("cpu", "cuda"))
    masks = dp.Masks.random(digits.space, keep=0.7)
    assert on_cuda(masks) == pytest.approx(on_cpu(masks), rel=1e-3)
    assert on_cuda(masks) == digits.evaluator(objectives=names, device="cuda")(masks)
    assert next(on_cuda.slim(masks).parameters()).device.type == "cuda"
    assert next(digits.model.parameters()).device.type == "cpu"
    with on_cuda.masked(masks) as network, torch.no_grad():
        small = on_cpu.slim(masks)(digits.validation[0])
        assert torch.allclose(network(digits.validation[0]), small, atol=1e-2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_missing_cuda_device_is_named(digits: Digits) -> None:
    with pytest.raises(DataError, match="device='cuda', but torch finds no CUDA device"):
        digits.evaluator(device="cuda")
    assert digits.evaluator(device="auto").device.type == "cpu"


def test_no_warning_in_ordinary_use(digits: Digits) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        digits.evaluator()(dp.Masks.random(digits.space))
