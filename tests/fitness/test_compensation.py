"""Compensation inside the fitness: what is judged is what is handed over, and it helps."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Digits
from scipy.stats import kendalltau
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.errors import ConfigError, DataError
from deap_prune.fitness import Sampling
from deap_prune.reconstruction import collect_grams, compensate, error
from deap_prune.structure.inputs import forward
from tests.helpers.networks import NETWORKS
from tests.helpers.pruning import draw_masks, gap, prepared


def tuple_forward(model: nn.Module, batch: Any) -> tuple[list[Tensor], Tensor]:
    return forward(model, batch), torch.zeros(1)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("recalibrate", ["closed_form", None])
def test_slim_is_masked_as_judged(name: str, recalibrate: str | None) -> None:
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


def test_it_is_compensate_that_is_called(digits: Digits) -> None:
    """By hand: grams on the calibration data, then the re-fit of the slim network."""
    masks = dp.Masks.random(digits.space, keep=0.5)
    evaluate = digits.evaluator(recalibrate=None, batch_size=100)
    x = digits.calibration[0].contiguous(memory_format=torch.channels_last)
    grams = collect_grams(digits.model.eval(), digits.space, [(x, digits.calibration[1])])
    small = dp.slim(digits.model, digits.space, masks)
    compensate(small, digits.space, masks, grams)
    for key, value in evaluate.slim(masks).state_dict().items():
        torch.testing.assert_close(value, small.state_dict()[key])
    assert evaluate.counters.seconds["compensate"] > 0


def test_candidates_are_built_in_full_precision(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Re-fitting, too, does without TF32, whatever the user has set; and the user's setting comes back."""
    found = []

    def spy(*args: Any, **options: Any) -> None:
        found.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.deterministic))

    monkeypatch.setattr("deap_prune.fitness.candidate.compensate", spy)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        digits.evaluator()(dp.Masks.random(digits.space))
        assert found == [("highest", True)] and torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_quality_of_the_settings(digits: Digits) -> None:
    """Mean loss over random masks: each step helps; closed-form statistics come near those from data."""
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


def test_memory_of_the_matrices_is_bounded(digits: Digits, caplog: pytest.LogCaptureFixture) -> None:
    """The option reaches the matrices, and the log says which layers go by channel."""
    wide = digits.evaluator()
    with caplog.at_level(logging.INFO, logger="deap_prune"):
        narrow = digits.evaluator(moment_memory=1)
        assert narrow._build.moments.nbytes <= 2**20 < wide._build.moments.nbytes
    assert "compensation by channel (memory 1 MB)" in caplog.text
    with pytest.raises(ConfigError, match="moment_memory is 0; give 1 or more MB"):
        digits.evaluator(moment_memory=0)
    with pytest.raises(ConfigError, match="batch_size is 0; give 1 or more samples"):
        digits.evaluator(batch_size=0)


@pytest.mark.parametrize(("mode", "expected"), [("full", "closed_form"), ("channel", "data"), (None, "data")])
def test_statistics_follow_compensation(digits: Digits, mode: str | None, expected: str) -> None:
    """``recalibrate="auto"``, the default: in closed form where full moments tell it; what is stored says which."""
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


def test_auto_without_calibration_data_is_none(digits: Digits) -> None:
    masks = dp.Masks.random(digits.space)
    small = digits.evaluator(calibration=None, recalibrate=None).slim(masks)
    raw = dp.slim(digits.model, digits.space, masks)
    assert all(torch.equal(value, raw.state_dict()[key]) for key, value in small.state_dict().items())


def test_messages(digits: Digits) -> None:
    with pytest.raises(ConfigError, match="compensate is 'half'; it is 'auto', 'full', 'channel' or None"):
        digits.evaluator(compensate="half")
    with pytest.raises(DataError, match="calibration data is needed"):
        digits.evaluator(calibration=None, recalibrate=None, compensate="channel")


# ------------------------------------------------------------------ refinement
@pytest.mark.parametrize("name", ["plain", "residual"])
def test_refined_slim_is_masked_as_judged(name: str) -> None:
    _, _, space, random, call = prepared(name)
    evaluate = dp.Evaluator(
        random, space, calibration=[call], objectives=("flops",), forward=tuple_forward, device="cpu", refine=True
    )
    masks = draw_masks(space, 12)
    with torch.no_grad():
        small = forward(evaluate.slim(masks), call)
        with evaluate.masked(masks) as network:
            assert gap(small, forward(network, call)) < 1e-9


def test_in_full_refines_and_forgets_draws_and_races(digits: Digits) -> None:
    masks = dp.Masks.random(digits.space, keep=0.4)
    search = digits.evaluator(objectives=("loss",), sampling=Sampling(images=50), racing=0.9)
    (before,) = search(masks)
    judge = search.with_settings(refine=True)
    (after,) = judge(masks)
    assert judge.options.racing is None and judge.settings["refine"] and not search.settings["refine"]
    assert judge.counters is search.counters and judge.counters.seconds["refine"] > 0
    assert search.cache == {masks: (before,)} and judge.cache == {masks: (after,)}
    start = search.slim(masks)
    x, y = digits.calibration
    data = [(x.contiguous(memory_format=torch.channels_last), y)]
    wanted = dp.refine(search.network, digits.space, masks, data, start=start)
    for key, value in judge.slim(masks).state_dict().items():
        torch.testing.assert_close(value, wanted.state_dict()[key])
    assert after == pytest.approx(judge.measure(wanted, masks)[0], rel=1e-4)
    assert after < search.with_settings(refine=False)(masks)[0]


def test_refinement_uses_as_many_images_as_it_is_told(digits: Digits) -> None:
    masks = dp.Masks.random(digits.space, keep=0.4)
    few, all_of_them = (digits.evaluator(refine=True, refine_images=n) for n in (20, 1000))
    x, y = (part[:20] for part in digits.calibration)
    data = [(x.contiguous(memory_format=torch.channels_last), y)]
    start = digits.evaluator().slim(masks)
    wanted = dp.refine(few.network, digits.space, masks, data, start=start, rows=320).state_dict()
    assert all(torch.allclose(value, wanted[key]) for key, value in few.slim(masks).state_dict().items())
    assert any(not torch.equal(value, wanted[key]) for key, value in all_of_them.slim(masks).state_dict().items())
    with pytest.raises(ConfigError, match="refine_images is 1; give 2 or more"):
        digits.evaluator(refine_images=1)


def test_refined_from_a_generation_on(digits: Digits) -> None:
    """Parents are judged again when it begins, as if they had always been judged so; and the front says so."""
    a, b = (dp.Masks.random(digits.space, keep=0.4, seed=s) for s in range(2))
    plain, refined = digits.evaluator(), digits.evaluator(refine=True)
    evaluate = digits.evaluator(refine_from=2)
    assert evaluate.next_generation(1, [a]) == [plain(a)] and not evaluate.settings["refine"]
    assert evaluate.next_generation(2, [a]) == [refined(a)] != [plain(a)] and evaluate.settings["refine"]
    judged = evaluate.counters.candidates
    assert evaluate.next_generation(3, [a]) == [refined(a)] and evaluate.counters.candidates == judged
    assert evaluate(b) == refined(b) == evaluate.measure(evaluate.slim(b), b)
    with pytest.raises(ConfigError, match="refine_from is -1; give a generation, 0 being the first population"):
        digits.evaluator(refine_from=-1)


def test_drafts_are_refined_on_fewer_images(digits: Digits) -> None:
    """From the first population on; what is judged in full is refined as the settings say."""
    masks = dp.Masks.random(digits.space, keep=0.4)
    few, many = (digits.evaluator(refine=True, refine_images=n) for n in (20, 40))
    evaluate = digits.evaluator(refine_from=0, draft_images=20, refine_images=40)
    assert evaluate(masks) == few(masks) != many(masks)
    assert evaluate.settings == few.settings and not evaluate.options.by_generation
    full = evaluate.with_settings(refine=True)
    assert full(masks) == many(masks) and full.settings == many.settings
    for options, match in (
        ({"draft_images": 1, "refine": True}, "draft_images is 1; give 2 or more"),
        ({"draft_images": 20}, "draft_images are of candidates that are refined; set refine_from"),
        ({"draft_images": 50, "refine": True, "refine_images": 40}, "draft_images is 50, above refine_images, 40"),
    ):
        with pytest.raises(ConfigError, match=match):
            digits.evaluator(**options)


@pytest.mark.parametrize("memory", [2048, 1])
def test_the_dense_network_runs_once_for_all_that_are_refined(digits: Digits, memory: int) -> None:
    """If what is noted of it fits; the values are the same."""
    first, second = (dp.Masks.random(digits.space, keep=0.4, seed=s) for s in range(2))
    options: dict[str, Any] = {"refine": True, "compensate": "full"}
    evaluate = digits.evaluator(moment_memory=memory, **options)
    evaluate(first)
    runs: list[int] = []
    handle = evaluate.network.register_forward_hook(lambda network, args, outputs: runs.append(len(outputs)))
    assert evaluate(second) == digits.evaluator(**options)(second)
    handle.remove()
    assert bool(runs) == (memory == 1)


def test_the_surrogate_learns_where_candidates_are_refined(digits: Digits) -> None:
    """It ranks drafts it has not seen better than the sum of all layers' errors, and better than nothing."""
    rng, sizes = np.random.default_rng(0), [group.size for group in digits.space.groups]
    masks = [
        dp.Masks({g.name: rng.permutation(g.size) < rng.integers(1, g.size + 1) for g in digits.space.groups})
        for _ in range(48)
    ]
    assert len(sizes) > 2 and digits.evaluator(objectives=("loss",)).learned() is None
    evaluate = digits.evaluator(objectives=("flops", "loss", "accuracy"), refine_from=0, draft_images=60)
    losses = [loss for _, loss, _ in evaluate.many(masks[:24])]
    learned, known = evaluate.learned(), dict(evaluate.cache)
    assert learned is not None
    assert [learned(m) for m in masks[:5]] != [evaluate.surrogate(m) for m in masks[:5]]
    rest = [loss for _, loss, _ in evaluate.many(masks[24:])]
    by_sum, by_learned = ([error(m) for m in masks[24:]] for error in (evaluate.surrogate, learned))
    assert kendalltau(by_learned, rest)[0] > max(0.4, kendalltau(by_sum, rest)[0])
    assert kendalltau([learned(m) for m in masks[:24]], losses)[0] > 0.4
    accurate = digits.evaluator(objectives=("accuracy",), refine_from=0, draft_images=60)
    more = accurate.learned({m: values[2:] for m, values in known.items()})
    assert more is not None and kendalltau([more(m) for m in masks[24:]], rest)[0] > 0.3  # accuracy is maximised
    unlearned = evaluate.learned({})
    assert unlearned is not None and unlearned(masks[0]) == evaluate.surrogate(masks[0])
    assert digits.evaluator(objectives=("flops",), refine_from=0).learned() is None
    assert digits.evaluator(objectives=("loss",), refine_from=0, racing=0.9).learned() is None


def test_what_is_learned_is_computed_in_full_precision(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what is remembered of a mask would depend on who asked first, and a resumed run would differ."""
    seen: set[str] = set()
    solve = error.refit

    def watched(*args: Any) -> Any:
        seen.add(torch.get_float32_matmul_precision())
        return solve(*args)

    monkeypatch.setattr(error, "refit", watched)
    evaluate = digits.evaluator(objectives=("loss",), refine_from=0, draft_images=20)
    masks = [dp.Masks.random(digits.space, keep=0.4, seed=s) for s in range(4)]
    evaluate.many(masks[:2])
    torch.set_float32_matmul_precision("high")
    try:
        learned = evaluate.learned()
        assert learned is not None
        learned(masks[2])
        evaluate.prescreen(masks[3:], 1, learned)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == {"highest"}
