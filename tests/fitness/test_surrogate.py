"""The surrogate of the fitness: the error that compensation leaves, and the one fitted to evaluated candidates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import Digits
from scipy.stats import kendalltau

import deap_prune as dp
from deap_prune.errors import DataError
from deap_prune.reconstruction import error

DRAFTS: dict[str, Any] = {"refine": True, "refine_images": 60}


def test_the_surrogate_needs_no_forward_pass_over_the_validation_images(digits: Digits) -> None:
    evaluate = digits.evaluator(objectives=("loss",))
    assert evaluate.surrogate(dp.Masks({})) == 0 < evaluate.surrogate(dp.Masks.random(digits.space, keep=0.5))
    assert evaluate.counters.samples == 0


def test_the_surrogate_needs_calibration_data(digits: Digits) -> None:
    evaluate = digits.evaluator(calibration=None, recalibrate=None)
    with pytest.raises(DataError, match="calibration data is needed"):
        evaluate.surrogate(dp.Masks({}))


@pytest.mark.slow
def test_the_learned_surrogate_ranks_new_drafts(digits: Digits) -> None:
    """It ranks drafts that it was not fitted to better than the sum of all layers' errors does.

    Slow: it refines 48 drafts; ``reconstruction/test_error.py`` checks the fitted weights in every run.
    """
    rng = np.random.default_rng(0)
    masks = [
        dp.Masks({g.name: rng.permutation(g.size) < rng.integers(1, g.size + 1) for g in digits.space.groups})
        for _ in range(48)
    ]
    evaluate = digits.evaluator(objectives=("flops", "loss", "accuracy"), **DRAFTS)
    losses = [loss for _, loss, _ in evaluate.many(masks[:24])]
    learned, evaluated = evaluate.learned(), dict(evaluate.cache)
    assert learned is not None
    assert [learned(m) for m in masks[:5]] != [evaluate.surrogate(m) for m in masks[:5]]
    rest = [loss for _, loss, _ in evaluate.many(masks[24:])]
    by_sum, by_learned = ([estimate(m) for m in masks[24:]] for estimate in (evaluate.surrogate, learned))
    assert kendalltau(by_learned, rest)[0] > max(0.4, kendalltau(by_sum, rest)[0])
    assert kendalltau([learned(m) for m in masks[:24]], losses)[0] > 0.4
    accurate = digits.evaluator(objectives=("accuracy",), **DRAFTS)
    by_accuracy = accurate.learned({m: values[2:] for m, values in evaluated.items()})
    assert by_accuracy is not None and kendalltau([by_accuracy(m) for m in masks[24:]], rest)[0] > 0.3  # maximised
    unfitted = evaluate.learned({})
    assert unfitted is not None and unfitted(masks[0]) == evaluate.surrogate(masks[0])


def test_only_refined_candidates_with_data_teach_the_surrogate(digits: Digits) -> None:
    assert digits.evaluator(objectives=("loss",)).learned() is None
    assert digits.evaluator(objectives=("flops",), refine=True).learned() is None
    assert not digits.evaluator(objectives=("loss",)).learns
    assert digits.evaluator(objectives=("flops", "loss"), refine=True).learns


def test_the_learned_surrogate_is_computed_in_full_precision(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a cached error would depend on the caller's precision, and a resumed run would differ."""
    precisions: set[str] = set()
    solve = error.refit

    def watched(*args: Any) -> Any:
        precisions.add(torch.get_float32_matmul_precision())
        return solve(*args)

    monkeypatch.setattr(error, "refit", watched)
    evaluate = digits.evaluator(objectives=("loss",), refine=True, refine_images=20)
    masks = [dp.Masks.random(digits.space, keep=0.4, seed=s) for s in range(4)]
    evaluate.many(masks[:2])
    torch.set_float32_matmul_precision("high")
    try:
        learned = evaluate.learned()
        assert learned is not None
        learned(masks[2])
        evaluate.surrogate(masks[3])
    finally:
        torch.set_float32_matmul_precision("highest")
    assert precisions == {"highest"}
