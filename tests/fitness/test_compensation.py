"""Compensation inside the fitness: the evaluated network is the delivered one, and compensation helps."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from conftest import Digits
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.errors import ConfigError, DataError
from deap_prune.reconstruction import collect_grams, compensate
from deap_prune.structure.inputs import forward
from tests.helpers.networks import NETWORKS
from tests.helpers.pruning import draw_masks, gap, prepared


def tuple_forward(model: nn.Module, batch: Any) -> tuple[list[Tensor], Tensor]:
    return forward(model, batch), torch.zeros(1)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("recalibrate", ["closed_form", None])
def test_the_evaluated_slim_and_masked_networks_agree(name: str, recalibrate: str | None) -> None:
    """Law 1 with re-fitted weights, with and without closed-form statistics; the data pass is tested elsewhere."""
    _, _, space, random, call = prepared(name)
    options: dict[str, Any] = {
        "recalibrate": recalibrate,
        "compensate": "full",
        "objectives": ("flops",),
        "device": "cpu",
    }
    evaluate = dp.Evaluator(random, space, calibration=[call], forward=tuple_forward, **options)
    masks = draw_masks(space, 11)
    with torch.no_grad():
        small = forward(evaluate.slim(masks), call)
        with evaluate.masked(masks) as network:
            assert gap(small, forward(network, call)) < 1e-9


def test_the_evaluator_compensates_on_the_calibration_data(digits: Digits) -> None:
    """By hand: moments on the calibration data, then the re-fit of the slim network."""
    masks = dp.Masks.random(digits.space, keep=0.5)
    evaluate = digits.evaluator(recalibrate=None, batch_size=100)
    x = digits.calibration[0].contiguous(memory_format=torch.channels_last)
    moments = collect_grams(digits.model.eval(), digits.space, [(x, digits.calibration[1])])
    small = dp.slim(digits.model, digits.space, masks)
    compensate(small, digits.space, masks, moments)
    for key, value in evaluate.slim(masks).state_dict().items():
        torch.testing.assert_close(value, small.state_dict()[key])
    assert evaluate.counters.seconds["compensate"] > 0


def test_candidates_are_built_in_full_precision(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Re-fitting never uses TF32, whatever the user has set; the user's setting is restored."""
    settings = []

    def spy(*args: Any, **options: Any) -> None:
        settings.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.deterministic))

    monkeypatch.setattr("deap_prune.fitness.candidate.compensate", spy)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        digits.evaluator()(dp.Masks.random(digits.space))
        assert settings == [("highest", True)] and torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_each_step_of_the_settings_helps(digits: Digits) -> None:
    """Mean loss over random masks: compensation and BN statistics each lower it."""
    masks = [dp.Masks.random(digits.space, keep=0.6, seed=s) for s in range(4)]
    settings = [("data", "auto"), ("closed_form", "auto"), ("data", None), (None, None)]
    means = []
    for recalibrate, mode in settings:
        evaluate = digits.evaluator(objectives=("loss",), recalibrate=recalibrate, compensate=mode)
        means.append(sum(v for (v,) in evaluate.many(masks)) / len(masks))
        assert evaluate.settings["compensate"] == mode and evaluate.settings["recalibrate"] == recalibrate
    assert means[0] < means[2] < means[3] and means[1] < means[3]


def test_closed_form_statistics_need_no_forward_pass(digits: Digits) -> None:
    evaluate = digits.evaluator(recalibrate="closed_form")
    evaluate(dp.Masks.random(digits.space))
    assert evaluate.counters.samples == len(digits.validation[0])
    assert evaluate.counters.seconds["recalibrate"] == 0


def test_the_memory_of_the_moments_is_bounded(digits: Digits, caplog: pytest.LogCaptureFixture) -> None:
    """The option bounds the matrices, and the log names the layers that are compensated by channel."""
    wide = digits.evaluator()
    with caplog.at_level(logging.INFO, logger="deap_prune"):
        narrow = digits.evaluator(moment_memory=1)
        assert narrow._build.moments.nbytes <= 2**20 < wide._build.moments.nbytes
    assert "compensation by channel (memory 1 MB)" in caplog.text
    with pytest.raises(ConfigError, match="moment_memory is 0; give 1 or more, 2048 is the default"):
        digits.evaluator(moment_memory=0)
    with pytest.raises(ConfigError, match="batch_size is 0; give 1 or more, 250 is the default"):
        digits.evaluator(batch_size=0)


@pytest.mark.parametrize(("mode", "expected"), [("full", "closed_form"), ("channel", "data"), (None, "data")])
def test_statistics_follow_compensation(digits: Digits, mode: str | None, expected: str) -> None:
    """``recalibrate="auto"``, the default: in closed form if moments are full. The resolved setting is stored."""
    masks = dp.Masks.random(digits.space, keep=0.6)
    chosen = digits.evaluator(compensate=mode)
    assert chosen.settings["recalibrate"] == expected
    assert chosen(masks) == digits.evaluator(recalibrate=expected, compensate=mode)(masks)
    assert chosen.with_settings(refine=False).settings["recalibrate"] == expected


@pytest.mark.parametrize(("name", "expected"), [("residual", "closed_form"), ("separable", "data")])
def test_depthwise_layers_have_no_moments(name: str, expected: str) -> None:
    _, _, space, random, call = prepared(name)
    options: dict[str, Any] = {"compensate": "full", "objectives": ("flops",), "device": "cpu"}
    evaluate = dp.Evaluator(random, space, calibration=[call], forward=tuple_forward, **options)
    assert evaluate.settings["recalibrate"] == expected


def test_nothing_is_compensated_without_calibration_data(digits: Digits) -> None:
    masks = dp.Masks.random(digits.space)
    small = digits.evaluator(calibration=None, recalibrate=None).slim(masks)
    raw = dp.slim(digits.model, digits.space, masks)
    assert all(torch.equal(value, raw.state_dict()[key]) for key, value in small.state_dict().items())


def test_option_messages(digits: Digits) -> None:
    with pytest.raises(ConfigError, match="compensate is 'half'; it is 'auto', 'full', 'channel' or None"):
        digits.evaluator(compensate="half")
    with pytest.raises(DataError, match="calibration data is needed"):
        digits.evaluator(calibration=None, recalibrate=None, compensate="channel")
