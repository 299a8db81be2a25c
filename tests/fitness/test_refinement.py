"""Refinement inside the fitness: drafts, and evaluators with other settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import Digits
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.errors import ConfigError
from deap_prune.fitness import candidate
from deap_prune.structure.inputs import forward
from tests.helpers.pruning import draw_masks, gap, prepared


def tuple_forward(model: nn.Module, batch: Any) -> tuple[list[Tensor], Tensor]:
    return forward(model, batch), torch.zeros(1)


def first_images(digits: Digits, count: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """One batch of calibration images, with channels innermost as the evaluator reads them."""
    x, y = (part[:count] for part in digits.calibration)
    return [(x.contiguous(memory_format=torch.channels_last), y)]


@pytest.mark.parametrize("name", ["plain", "residual"])
def test_the_refined_slim_and_masked_networks_agree(name: str) -> None:
    _, _, space, random, call = prepared(name)
    evaluate = dp.Evaluator(
        random, space, calibration=[call], objectives=("flops",), forward=tuple_forward, device="cpu", refine=True
    )
    masks = draw_masks(space, 12)
    with torch.no_grad():
        small = forward(evaluate.slim(masks), call)
        with evaluate.masked(masks) as network:
            assert gap(small, forward(network, call)) < 1e-9


def test_with_settings_refines_the_compensated_network(digits: Digits) -> None:
    """The refined network is ``dp.refine``'s, started from the compensated one; the caches stay apart."""
    masks = dp.Masks.random(digits.space, keep=0.4)
    compared = digits.evaluator(objectives=("loss",), augment=True)
    (before,) = compared(masks)
    final = compared.with_settings(refine=True, augment=False)
    (after,) = final(masks)
    assert final.settings["refine"] and not compared.settings["refine"]
    assert final.counters is compared.counters and final.counters.seconds["refine"] > 0
    assert compared.cache == {masks: (before,)} and final.cache == {masks: (after,)}
    start, data = compared.slim(masks), first_images(digits)
    expected = dp.refine(compared.network, digits.space, masks, data, start=start)
    for key, value in final.slim(masks).state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[key])
    assert after == pytest.approx(final.measure(expected, masks)[0], rel=1e-4)
    assert after < compared.with_settings(refine=False, augment=False)(masks)[0]


def test_with_settings_equals_a_new_evaluator(digits: Digits) -> None:
    """Whatever was computed before the change: moments, batches, executor."""
    masks = dp.Masks.random(digits.space, keep=0.5)
    evaluate = digits.evaluator(objectives=("loss",), augment=True)
    evaluate(masks)
    changes: list[dict[str, Any]] = [
        {"augment": False},
        {"refine": True, "refine_images": 40},
        {"recalibrate": "data"},
        {"compensate": None},
        {"compensate": "channel"},
        {"moment_memory": 1},
        {"refine": True, "refine_memory": 0.001},
        {"executor": "masked"},
        {"seed": 1},
    ]
    for change in changes:
        new = digits.evaluator(**{"objectives": ("loss",), "augment": True, **change})
        changed = evaluate.with_settings(**change)
        assert changed(masks) == new(masks), change
        assert changed.settings == new.settings, change


def test_refinement_uses_at_most_refine_images(digits: Digits) -> None:
    masks = dp.Masks.random(digits.space, keep=0.4)
    few, all_images = (digits.evaluator(refine=True, refine_images=n) for n in (20, 1000))
    start = digits.evaluator().slim(masks)
    data = first_images(digits, 20)
    expected = dp.refine(few.network, digits.space, masks, data, start=start, rows=64 * 20).state_dict()
    assert all(torch.allclose(value, expected[key]) for key, value in few.slim(masks).state_dict().items())
    assert any(not torch.equal(value, expected[key]) for key, value in all_images.slim(masks).state_dict().items())
    with pytest.raises(ConfigError, match="refine_images is 1; give 2 or more, 1000 is the default"):
        digits.evaluator(refine_images=1)


def test_drafts_are_refined_on_fewer_images_than_the_front(digits: Digits) -> None:
    masks = dp.Masks.random(digits.space, keep=0.4)
    few, many = (digits.evaluator(refine=True, refine_images=n) for n in (20, 40))
    assert few(masks) != many(masks)
    final = few.with_settings(refine_images=40)
    assert final(masks) == many(masks) and final.settings == many.settings


def test_the_dense_network_runs_once_for_all_refined_candidates(digits: Digits) -> None:
    first, second = (dp.Masks.random(digits.space, keep=0.4, seed=s) for s in range(2))
    options: dict[str, Any] = {"refine": True, "compensate": "full"}
    evaluate = digits.evaluator(**options)
    evaluate(first)
    runs: list[int] = []
    handle = evaluate.network.register_forward_hook(lambda network, args, outputs: runs.append(len(outputs)))
    assert evaluate(second) == digits.evaluator(**options)(second)
    handle.remove()
    assert not runs


def test_recovery_is_ended_by_images_that_refinement_does_not_see(
    digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[float]] = {}

    def keys(batches: Any) -> set[float]:
        return {float(image.double().sum()) for batch in batches for image in batch[0]}

    class Watched(candidate.Refiner):
        def __init__(self, network: Any, space: Any, calibration: Any, **how: Any) -> None:
            seen["refined"] = keys(calibration)
            super().__init__(network, space, calibration, **how)

    def recover(small: Any, model: Any, calibration: Any, *, validation: Any, **how: Any) -> None:
        seen.update(trained=keys(calibration), held_out=keys(validation))

    monkeypatch.setattr(candidate, "Refiner", Watched)
    monkeypatch.setattr(candidate, "recover", recover)
    evaluate = digits.evaluator(refine=True)
    evaluate.with_settings(recover=1)(dp.Masks.random(digits.space, keep=0.5, seed=0))
    assert seen["refined"] == seen["trained"] and len(seen["held_out"]) >= 10
    assert not seen["held_out"] & seen["trained"]
    evaluate(dp.Masks.random(digits.space, keep=0.5, seed=0))
    assert seen["refined"] == seen["trained"] | seen["held_out"]
