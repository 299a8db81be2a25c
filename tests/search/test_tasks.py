"""Other tasks than classification, and batches that hold more than samples: from Python, end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Digits
from torch import Tensor, nn

import deap_prune as dp
from deap_prune import zoo
from deap_prune.criteria.registry import CRITERIA
from deap_prune.data.batches import cross_entropy, join, samples_of
from deap_prune.errors import DataError
from deap_prune.fitness import OBJECTIVES
from tests.helpers.networks import conv_bn

QUICK: dict[str, Any] = {"population": 4, "generations": 1, "finalists": 1, "progress": False, "device": "cpu"}


def regression() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A network whose output is the brightness of an image, and images."""
    torch.manual_seed(0)
    body = [conv_bn(3, 8), nn.ReLU(), conv_bn(8, 6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    x = torch.randn(80, 3, 8, 8)
    return nn.Sequential(*body, nn.Linear(6, 1)).eval(), (x, x.mean((1, 2, 3)).unsqueeze(1))


# ------------------------------------------------------------------ a loss of your own
def test_regression() -> None:
    """Criteria and the objective ``loss`` use the given loss."""
    model, data = regression()
    space = dp.trace(model, data[0])
    own = dp.score(model, space, data, criteria=("taylor_weight",), loss=F.mse_loss)
    assert all(np.ptp(by["taylor_weight"]) > 0 for by in own.scores.values())
    result = dp.search(
        model, data[0], calibration=data, validation=data, objectives=("loss", "flops"), loss=F.mse_loss, **QUICK
    )
    for solution in result.front:
        with torch.no_grad():
            error = float(F.mse_loss(result.slim(solution)(data[0]), data[1]))
        assert solution.values["loss"] == pytest.approx(error, rel=1e-4)


def test_a_loss_per_sample_equals_its_mean() -> None:
    model, data = regression()
    space = dp.trace(model, data[0])
    options: dict[str, Any] = {"calibration": data, "validation": data, "objectives": ("loss",), "device": "cpu"}
    per_sample = dp.Evaluator(model, space, loss=lambda out, y: (out - y).square().squeeze(1), batch_size=30, **options)
    mean = dp.Evaluator(model, space, loss=F.mse_loss, batch_size=30, **options)
    masks = dp.Masks.random(space, keep=0.6)
    assert per_sample(masks) == pytest.approx(mean(masks), rel=1e-5)


def test_a_loss_per_sample_suits_criteria_too() -> None:
    model, data = regression()
    options: dict[str, Any] = {**QUICK, "calibration": data, "validation": data, "max_flops": 0.6}
    result = dp.search(
        model, data[0], objectives=("loss",), loss=lambda out, y: F.mse_loss(out, y, reduction="none"), **options
    )
    assert result.best.flops <= 0.6 * result.space.flops
    with pytest.raises(DataError, match=r"the loss gives a float; it gives a tensor"):
        dp.search(model, data[0], objectives=("loss", "flops"), loss=lambda out, y: 1.0, **options)


def test_loaders_are_read_inside_the_search() -> None:
    """Also under the caller's inference mode; torch's generator is not advanced."""
    model, data = regression()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), 40, shuffle=True)
    state = torch.get_rng_state()
    with torch.inference_mode():
        options: dict[str, Any] = {
            "objectives": ("loss", "flops"),
            "loss": F.mse_loss,
            "criteria": ("taylor_weight", "l1"),
        }
        dp.search(model, data[0], calibration=loader, validation=loader, **options, **QUICK)
    assert torch.equal(torch.get_rng_state(), state)


def test_resumed_with_its_loss(tmp_path: Path) -> None:
    model, data = regression()
    options: dict[str, Any] = {"calibration": data, "validation": data, "loss": F.mse_loss, "progress": False}
    settings = {**QUICK, **options, "objectives": ("loss", "flops"), "out": tmp_path / "run"}
    dp.search(model, data[0], **settings)
    before = (tmp_path / "run" / "front.json").read_bytes()
    dp.resume(tmp_path / "run", model, data[0], **options)
    assert (tmp_path / "run" / "front.json").read_bytes() == before


@pytest.mark.parametrize("shape", ["(N, 1)", "(N,)", "boxes"])
def test_real_targets_are_not_class_probabilities(shape: str) -> None:
    """Cross-entropy over one class is always 0: an error, not a search in which all candidates are equal."""
    model, (x, y) = regression()
    if shape == "boxes":
        model, y = nn.Sequential(*list(model)[:-1], nn.Linear(6, 4)).eval(), torch.randn(80, 4)
    targets = y.squeeze(1) if shape == "(N,)" else y
    with pytest.raises(
        DataError, match=r"real numbers of shape .* not class probabilities.*a loss of your own \(loss=\)"
    ):
        dp.score(model, dp.trace(model, x), (x, targets), criteria=("taylor_gate",))
    with pytest.raises(DataError, match="objectives fail on the validation data: targets are real numbers"):
        dp.search(model, x, calibration=(x, targets), validation=(x, targets), objectives=("loss", "flops"), **QUICK)


def test_cross_entropy_is_torchs() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 4, 3), torch.randint(4, (6, 3))
    losses = F.cross_entropy(logits, labels, reduction="none")
    assert torch.equal(cross_entropy(logits, labels), F.cross_entropy(logits, labels))
    assert torch.allclose(cross_entropy(logits, labels, by_sample=True), losses.mean(1))
    assert torch.allclose(cross_entropy(logits[..., 0], labels[:, 0], by_sample=True), losses[:, 0])
    shares = torch.randn(6, 4, 3).softmax(1)
    assert torch.equal(cross_entropy({"out": logits}, shares), F.cross_entropy(logits, shares))
    left_out = labels.clone()
    left_out[0], left_out[1] = 255, -1
    left_out[2, 0] = 255
    labelled = losses[left_out.clamp_min(0) == labels]
    assert torch.allclose(cross_entropy(logits, left_out), labelled.mean())
    assert torch.allclose(
        cross_entropy(logits, left_out, by_sample=True)[:3], torch.tensor([0, 0, losses[2, 1:].mean()])
    )
    assert cross_entropy(logits[:2], left_out[:2]) == 0


def test_segmentation_with_unlabelled_positions() -> None:
    """255 marks positions without a label, in criteria and loss as in ``miou``."""
    torch.manual_seed(0)
    model = nn.Sequential(conv_bn(3, 8), nn.ReLU(), conv_bn(8, 6), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()
    x, y = torch.randn(24, 3, 8, 8), torch.randint(4, (24, 8, 8))
    y[:, :2] = 255
    result = dp.search(model, x, calibration=(x, y), validation=(x, y), objectives=("miou", "loss", "flops"), **QUICK)
    for solution in result.front:
        with torch.no_grad():
            expected = float(F.cross_entropy(result.slim(solution)(x), y, ignore_index=255))
        assert solution.values["loss"] == pytest.approx(expected, rel=1e-4) and solution.values["miou"] > 0


# ------------------------------------------------------------------ batches
def test_tensors_that_all_samples_share_stay_whole() -> None:
    grid = torch.randn(1, 5, 2)
    batches = [((torch.randn(n, 1, 5), grid), torch.zeros(n)) for n in (4, 3)]
    whole = join(batches)
    assert len(whole[0][0]) == len(whole[1]) == 7 and whole[0][1] is grid
    other = [*batches, ((torch.randn(2, 1, 5), torch.randn(1, 5, 2)), torch.zeros(2))]
    with pytest.raises(DataError, match=r"tensors of shape \(1, 5, 2\) that differ from batch to batch"):
        join(other)
    some = samples_of(whole, slice(2, 5))
    assert torch.equal(some[0][0], whole[0][0][2:5]) and some[0][1] is grid and len(some[1]) == 3


@pytest.mark.parametrize("options", [{}, {"guard": 10}])
def test_a_search_with_a_tensor_that_all_samples_share(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, grid = zoo.PointClassifier(1, 3, widths=(6, 8)).eval(), torch.rand(1, 12, 2)
    batches = [((torch.randn(10, 1, 12), grid), torch.randint(3, (10,))) for _ in range(4)]
    example = batches[0][0]
    result = dp.search(model, example, calibration=batches, validation=batches, **QUICK, **options)
    used = batches[:3] if options else batches  # the guard holds out the last batch
    for solution in result.front:
        small = result.slim(solution)
        with torch.no_grad():
            hits = sum(int((small(*inputs).argmax(1) == labels).sum()) for inputs, labels in used)
        assert solution.values["accuracy"] == pytest.approx(hits / (10 * len(used)))


def test_accuracy_reads_a_loader_batch_by_batch(digits: Digits) -> None:
    """All images at once might not fit into memory."""
    x, y = digits.validation
    order: list[str] = []

    def loader() -> Any:
        for batch in zip(x.split(50), y.split(50), strict=True):
            order.append("read")
            yield batch

    handle = digits.model.register_forward_hook(lambda *_: order.append("run"))
    accuracy = dp.accuracy(digits.model, loader(), device="cpu")
    handle.remove()
    assert accuracy == dp.accuracy(digits.model, (x, y), device="cpu") and order == ["read", "run"] * 4


# ------------------------------------------------------------------ plug-ins that go wrong
def test_an_objective_must_give_one_value_per_sample(digits: Digits) -> None:
    cases = (("bad_mean", lambda out: out.mean(), "a tensor without"), ("bad_float", lambda out: 1.0, "a float"))
    for name, value, what in cases:

        @dp.register_objective(name, maximise=False, worst=1.0)
        def wrong(outputs: Tensor, targets: Tensor, dense: None, value: Any = value) -> Any:
            return value(outputs)

        try:
            with pytest.raises(DataError, match=rf"objective '{name}' gave {what}.*shape \(samples, ...\)"):
                digits.evaluator(objectives=(name, "flops"))
        finally:
            OBJECTIVES.remove(name)


def test_a_criterion_that_gives_nothing(digits: Digits) -> None:
    @dp.register_criterion("forgetful", needs="weight")
    def forgetful(weight: Tensor) -> None:
        """No return."""

    try:
        with pytest.raises(DataError, match=r"criterion 'forgetful' gave None for .*; return one score per filter"):
            dp.score(digits.model, digits.space, criteria=("forgetful",))
    finally:
        CRITERIA.remove("forgetful")
