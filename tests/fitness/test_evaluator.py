"""Masks in, objectives out: what is judged is what is handed over, by figures that can be computed by hand."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Digits
from helpers import assert_unchanged, draw_masks, gap, prepare, prepared, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, plain_example
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.errors import ConfigError, DataError, MaskError, ModelError, RegistryError
from deap_prune.fitness import OBJECTIVES
from deap_prune.structure.inputs import forward


# ------------------------------------------------------------------ law 1, as judged
def tuple_forward(model: nn.Module, batch: Any) -> tuple[list[Tensor], Tensor]:
    return forward(model, batch), torch.zeros(1)


def check_as_judged(model: nn.Module, space: dp.PruningSpace, call: Any, seed: int) -> None:
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
def test_slim_is_masked_as_judged(name: str, seed: int) -> None:
    _, _, space, random, call = prepared(name)
    check_as_judged(random, space, call, seed)


@pytest.mark.parametrize("norm", [nn.SyncBatchNorm, nn.BatchNorm2d])
def test_statistics_of_layers_that_stay_dense_are_re_estimated_too(norm: type[nn.Module]) -> None:
    """A normalisation of a type that isn't narrowed, after layers that are."""
    _, _, space, random, call = prepare(plain_example(norm(8)))
    check_as_judged(random, space, call, 0)


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
        outputs = network(digits.validation[0])
    assert_unchanged(model, before)
    small = evaluate.slim(masks)
    assert not small.training
    with torch.no_grad():
        assert torch.allclose(outputs, small(digits.validation[0]), atol=1e-4)


# ------------------------------------------------------------------ figures by hand
def test_objectives_by_hand(digits: Digits) -> None:
    names = ("accuracy", "loss", "agreement", "flops", "params")
    evaluate = digits.evaluator(objectives=names, batch_size=64)
    masks = dp.Masks.random(digits.space, keep=0.8, seed=2)
    found = dict(zip(names, evaluate(masks), strict=True))
    x, y = digits.validation
    with torch.no_grad():
        pruned, dense = evaluate.slim(masks)(x), copy.deepcopy(digits.model).eval()(x)
    assert found["accuracy"] == (pruned.argmax(1) == y).double().mean()
    assert np.isclose(found["loss"], float(F.cross_entropy(pruned, y)), rtol=1e-5)
    p, q = dense.softmax(1), pruned.softmax(1)
    assert np.isclose(found["agreement"], float((p * (p / q).log()).sum(1).mean()), rtol=1e-3)
    assert found["flops"] == dp.flops(digits.space, masks) / digits.space.flops
    assert found["params"] == dp.params(digits.space, masks) / digits.space.params
    assert evaluate.names == names and evaluate.weights == (1, -1, -1, -1, -1)


def test_dense_figures(digits: Digits) -> None:
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
        wanted = torch.stack([part[name] for part in parts]).mean(0)
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-5)
    momenta = {m.momentum for m in small.modules() if isinstance(m, nn.BatchNorm2d)}
    assert momenta == {m.momentum for m in digits.model.modules() if isinstance(m, nn.BatchNorm2d)}


def test_re_estimation_repairs_and_can_be_left_out(digits: Digits) -> None:
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


def test_batch_size_does_not_change_figures_without_re_estimation(digits: Digits) -> None:
    masks = dp.Masks.random(digits.space, keep=0.9)
    options: dict[str, Any] = {"recalibrate": None, "compensate": None, "objectives": ("loss",)}
    values = [digits.evaluator(**options, batch_size=n)(masks)[0] for n in (7, 64, 500)]
    np.testing.assert_allclose(values, values[0], rtol=1e-5)


# ------------------------------------------------------------------ cache and counters
def test_cache_and_counters(digits: Digits) -> None:
    evaluate = digits.evaluator()
    a, b = (dp.Masks.random(digits.space, seed=s) for s in (0, 1))
    values = evaluate.many([a, b, dp.Masks(dict(a)), b, a])
    assert values == [values[0], values[1], values[0], values[1], values[0]]
    assert (evaluate.counters.candidates, evaluate.counters.cache_hits) == (2, 3)
    assert evaluate.counters.samples == 2 * (100 + 200)
    assert evaluate(a) == values[0] == digits.evaluator()(a)
    assert evaluate.counters.cache_hits == 4
    assert all(evaluate.counters.seconds[phase] > 0 for phase in ("plan", "recalibrate", "forward"))


def test_costs_alone_need_no_data() -> None:
    model, _, space, _, _ = prepared("residual")
    evaluate = dp.Evaluator(model, space, objectives=("flops", "params"), recalibrate=None, device="cpu")
    masks = dp.Masks.random(space)
    assert evaluate(masks) == (dp.flops(space, masks) / space.flops, dp.params(space, masks) / space.params)
    assert evaluate.counters.samples == 0


def test_masks_that_do_not_fit(digits: Digits) -> None:
    with pytest.raises(MaskError, match="no filter group 'layer9'"):
        digits.evaluator()(dp.Masks({"layer9": [True]}))


# ------------------------------------------------------------------ other batches
def by_name(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    return model(batch["image"]), batch["number"] - 1  # labels from 1


def test_custom_forward(digits: Digits) -> None:
    """Batches of another shape, labels in another form: what forward returns is what counts."""

    def loader(pair: tuple[Tensor, Tensor]) -> list[dict[str, Tensor]]:
        return [{"image": x, "number": y + 1} for x, y in zip(pair[0].split(50), pair[1].split(50), strict=True)]

    evaluate = dp.Evaluator(
        digits.model,
        digits.space,
        calibration=loader(digits.calibration),
        validation=loader(digits.validation),
        forward=by_name,
        device="cpu",
    )
    masks = dp.Masks.random(digits.space, keep=0.8)
    assert evaluate(masks) == digits.evaluator(batch_size=50)(masks)


def from_one(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    return model(batch[0]), batch[1] - 1


def test_labels_are_checked_as_forward_returns_them(digits: Digits) -> None:
    """In every batch: the raw targets are forward's business."""
    x, y = digits.validation
    masks = dp.Masks({})
    shifted = digits.evaluator(validation=(x, y + 1), forward=from_one, batch_size=50, recalibrate=None)
    assert shifted(masks) == digits.evaluator(batch_size=50, recalibrate=None)(masks)
    late = y.clone()
    late[-1] = 10
    with pytest.raises(DataError, match=r"validation has labels from .* to 10; the network has classes 0 to 9"):
        digits.evaluator(validation=(x, late), batch_size=50)(masks)


def test_images_and_labels_per_pixel() -> None:
    """Segmentation: an objective of one's own over outputs of shape (N, C, H, W)."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1))
    data = (torch.randn(10, 3, 8, 8), torch.randint(0, 4, (10, 8, 8)))
    space = dp.trace(model, data[0])

    def finish(total: Tensor, samples: int) -> float:
        return float((total[:, 0] / total[:, 1].clamp_min(1)).mean())

    @dp.register_objective("class_iou", maximise=True, worst=0.0, finish=finish)
    def class_iou(outputs: Tensor, targets: Tensor, dense: None) -> Tensor:
        predicted, wanted = (F.one_hot(t, 4).flatten(1, 2).bool() for t in (outputs.argmax(1), targets))
        return torch.stack([(predicted & wanted).sum(1), (predicted | wanted).sum(1)], dim=2)

    try:
        evaluate = dp.Evaluator(
            model,
            space,
            calibration=data,
            validation=data,
            objectives=("class_iou", "flops"),
            batch_size=3,
            device="cpu",
        )
        masks = dp.Masks.random(space)
        with torch.no_grad():
            predicted = evaluate.slim(masks)(data[0]).argmax(1)
        ious = [
            float(((predicted == c) & (data[1] == c)).sum() / ((predicted == c) | (data[1] == c)).sum().clamp_min(1))
            for c in range(4)
        ]
        assert evaluate(masks)[0] == pytest.approx(np.mean(ious))
    finally:
        OBJECTIVES.remove("class_iou")


# ------------------------------------------------------------------ what is not finite
@pytest.fixture
def fragile() -> Iterator[None]:
    """Best where it can be computed, and not a number for cheap networks."""

    @dp.register_objective("fragile", maximise=True, worst=-5.0, cost=True)
    def _(space: dp.PruningSpace, masks: dp.Masks) -> float:
        return float("nan") if dp.flops(space, masks) < 0.5 * space.flops else 1.0

    yield
    OBJECTIVES.remove("fragile")


@pytest.mark.usefixtures("fragile")
def test_nan_never_wins(digits: Digits) -> None:
    evaluate = digits.evaluator(objectives=("fragile", "accuracy"))
    toolbox = dp.make_toolbox(digits.genome(allocation="uniform"), evaluate)
    population = toolbox.population(n=12)
    with pytest.warns(UserWarning, match=r"fragile was nan; counted as the worst value, -5"):
        for individual in population:
            individual.fitness.values = toolbox.evaluate(individual)
    assert {ind.fitness.values[0] for ind in population} == {-5.0, 1.0}
    assert all(s.values["fragile"] == 1.0 for s in toolbox.front(population))
    best = toolbox.select(population, 4)
    assert any(ind.fitness.values[0] == 1.0 for ind in best)


def test_outputs_that_are_nan_are_not_right_by_chance(digits: Digits) -> None:
    """argmax of NaN is class 0: a network that broke must not get the zeros right."""
    x, y = digits.validation

    def broken(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        outputs = model(batch[0])
        return outputs if model.conv1.out_channels == 16 else outputs * float("nan"), batch[1]

    evaluate = digits.evaluator(validation=(x[y == 0], y[y == 0]), objectives=("accuracy", "loss"), forward=broken)
    with pytest.warns(UserWarning, match=r"accuracy was nan; counted as the worst value, 0"):
        assert evaluate(dp.Masks.random(digits.space)) == (0.0, 1e6)


def test_weights_that_are_not_finite(digits: Digits) -> None:
    model = copy.deepcopy(digits.model)
    model.bn1.running_var[3] = float("inf")
    with pytest.raises(ModelError, match=r"'bn1.running_var' holds values that are not finite"):
        dp.Evaluator(model, digits.space, calibration=digits.calibration, validation=digits.validation)


def test_gradients_in_channels_last_do_no_harm() -> None:
    """oneDNN (torch 2.15) writes outside of its memory in the weight gradient of some strided 1x1 convolutions.

    It does where images or weights are in channels_last and the layer reads 3, 5 or 6 channels: criteria avoid it.
    """
    code = f"""
    import sys
    sys.path[:0] = [{str(Path(__file__).parents[1])!r}]
    import networks, torch
    import deap_prune as dp
    torch.set_num_threads(1)
    model, example = networks.NETWORKS["residual"]()
    space = dp.trace(model, example)
    images = torch.randn(30, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    data = images, torch.randint(0, 5, (30,))
    evaluate = dp.Evaluator(model, space, calibration=data, validation=data, device="cpu")
    for _ in range(100):
        dp.score(evaluate.network, space, data, criteria=("taylor_weight",))
    """
    settings = {**os.environ, "MALLOC_CHECK_": "3"}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


# ------------------------------------------------------------------ messages
def test_data_messages(digits: Digits) -> None:
    x, y = digits.validation
    for name in ("calibration", "validation"):
        with pytest.raises(DataError, match=f"{name} data is needed: give {name}="):
            digits.evaluator(**{name: None})
        for empty in ([], iter(()), (x[:0], y[:0])):
            with pytest.raises(DataError, match=f"{name} is empty"):
                digits.evaluator(**{name: empty})
        for bad in (float("nan"), float("inf")):
            broken = x.clone()
            broken[5, 0, 0, 0] = bad
            with pytest.raises(DataError, match=f"{name} holds values that are not finite"):
                digits.evaluator(**{name: (broken, y)})
        with pytest.raises(DataError, match=f"{name}: 200 inputs but 100 targets"):
            digits.evaluator(**{name: (x, y[:100])})
    for wrong, low, high in ((y + 1, 1, 10), (y - 1, -1, 8)):
        with pytest.raises(DataError, match=f"validation has labels from {low} to {high}; .* classes 0 to 9"):
            digits.evaluator(validation=(x, wrong))


def test_option_messages(digits: Digits) -> None:
    with pytest.raises(RegistryError, match=r"unknown objective 'acuracy'; did you mean 'accuracy'\?"):
        digits.evaluator(objectives=("acuracy",))
    for objectives in ("accuracy", (), ("flops", "flops")):
        with pytest.raises(ConfigError, match=r"objectives is .*; give a tuple of different names"):
            digits.evaluator(objectives=objectives)
    with pytest.raises(ConfigError, match="recalibrate is 'always'; it is 'data', 'closed_form' or None"):
        digits.evaluator(recalibrate="always")


# ------------------------------------------------------------------ devices
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")
def test_cuda_judges_like_the_cpu(digits: Digits) -> None:
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
def test_cuda_is_missed_in_words(digits: Digits) -> None:
    with pytest.raises(DataError, match="device 'cuda' was asked for, but torch finds no CUDA device"):
        digits.evaluator(device="cuda")
    assert digits.evaluator(device="auto").device.type == "cpu"


def test_no_warning_in_ordinary_use(digits: Digits) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        digits.evaluator()(dp.Masks.random(digits.space))
