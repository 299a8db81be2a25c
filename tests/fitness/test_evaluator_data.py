"""Batches of other shapes, values that are not finite, and the messages about illegal data and options."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Digits
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.errors import ConfigError, DataError, ModelError, RegistryError
from deap_prune.fitness import OBJECTIVES


# ------------------------------------------------------------------ other batches
def by_name(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    return model(batch["image"]), batch["number"] - 1  # labels from 1


def test_custom_forward(digits: Digits) -> None:
    """Batches of another shape and labels of another form: ``forward`` converts both."""

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
    """In every batch; the raw targets are not checked."""
    x, y = digits.validation
    masks = dp.Masks({})
    shifted = digits.evaluator(validation=(x, y + 1), forward=from_one, batch_size=50, recalibrate=None)
    assert shifted(masks) == digits.evaluator(batch_size=50, recalibrate=None)(masks)
    late = y.clone()
    late[-1] = 10
    with pytest.raises(DataError, match=r"validation has labels from .* to 10; the network has classes 0 to 9"):
        digits.evaluator(validation=(x, late), batch_size=50)(masks)


def test_images_and_labels_per_pixel() -> None:
    """Segmentation: a registered objective of outputs of shape (N, C, H, W)."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1))
    data = (torch.randn(10, 3, 8, 8), torch.randint(0, 4, (10, 8, 8)))
    space = dp.trace(model, data[0])

    def finish(total: Tensor, samples: int) -> float:
        return float((total[:, 0] / total[:, 1].clamp_min(1)).mean())

    @dp.register_objective("class_iou", maximise=True, worst=0.0, finish=finish)
    def class_iou(outputs: Tensor, targets: Tensor, dense: None) -> Tensor:
        predicted, actual = (F.one_hot(t, 4).flatten(1, 2).bool() for t in (outputs.argmax(1), targets))
        return torch.stack([(predicted & actual).sum(1), (predicted | actual).sum(1)], dim=2)

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


# ------------------------------------------------------------------ values that are not finite
@pytest.fixture
def fragile() -> Iterator[None]:
    """An objective that is NaN for cheap networks."""

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


def test_outputs_that_are_nan_are_never_correct(digits: Digits) -> None:
    """The argmax of NaN is 0: a broken network must not score on label 0."""
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
    sys.path[:0] = [{str(Path(__file__).parents[2])!r}]
    import torch
    from tests.helpers import networks
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
    with pytest.raises(ConfigError, match="recalibrate is 'always'; it is 'auto', 'data', 'closed_form' or None"):
        digits.evaluator(recalibrate="always")


def test_values_are_plain_numbers_whatever_objectives_return(digits: Digits) -> None:
    """A checkpoint is JSON, which takes no number of NumPy's or torch's."""

    @dp.register_objective("a cost of numpy", maximise=False, worst=1.0, cost=True)
    def cost(space: dp.PruningSpace, masks: dp.Masks) -> np.float32:
        return np.float32(0.5)

    @dp.register_objective("a mean of torch", maximise=True, worst=0.0, finish=lambda total, n: total / n)
    def share(outputs: Tensor, targets: Tensor, dense_outputs: None) -> Tensor:
        return (outputs.argmax(1) == targets).float()

    try:
        values = digits.evaluator(objectives=("a cost of numpy", "a mean of torch"))(dp.Masks.random(digits.space))
    finally:
        for name in ("a cost of numpy", "a mean of torch"):
            OBJECTIVES.remove(name)
    assert [type(value) for value in values] == [float, float]


def test_threads_take_turns(digits: Digits) -> None:
    """Candidates share memory: without turns, the networks of two threads would mix."""
    evaluate = digits.evaluator()
    masks = [dp.Masks.random(digits.space, keep=0.5, seed=seed) for seed in range(6)]
    expected = [evaluate.compute(candidate) for candidate in masks]
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(evaluate.compute, masks)) == expected
