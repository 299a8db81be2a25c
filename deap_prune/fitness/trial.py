"""What evaluations and refinements will take, from trials on few images."""

from __future__ import annotations

import time
from dataclasses import dataclass

from deap_prune.data.batches import count_samples
from deap_prune.fitness.evaluator import Evaluator
from deap_prune.fitness.settings import Settings
from deap_prune.structure.masks import Masks

TRIAL_IMAGES = 64
"""Most images of a trial."""
PASSES = 14
"""Forward passes that a refinement with selection takes, about; a trial has as many images as its seconds allow."""


@dataclass(frozen=True)
class RefinementCost:
    """What refinement takes at the end of a search.

    Attributes:
        first: Seconds of the dense network's targets, once.
        each: Seconds of a network: selection, fit, evaluation.
    """

    first: float
    each: float


def dense_seconds(evaluator: Evaluator) -> float:
    """Seconds of the dense network for an image; its values are measured here."""
    counters = evaluator.counters
    before = counters.samples, counters.seconds["forward"]
    _ = evaluator.dense
    return (counters.seconds["forward"] - before[1]) / max(1, counters.samples - before[0])


def refinement_cost(evaluator: Evaluator, *, images: int, select: bool, dense: float, seconds: float) -> RefinementCost:
    """Refine a random network on few images, twice, and extrapolate.

    Args:
        evaluator: The fitness, whose other settings count.
        images: Most images of the refinement.
        select: Whether refinement selects filters.
        dense: Seconds of the dense network for an image.
        seconds: What the trials may take, about.
    """
    evaluator._build.collect_moments()  # not in the trials: all settings share them
    images = min(images, sum(map(count_samples, evaluator._calibration)))
    validation = sum(map(count_samples, evaluator._validation)) * dense
    affordable = int(seconds / (PASSES * max(dense, 1e-9)))
    larger = max(2, min(images, TRIAL_IMAGES, max(8, affordable)))
    smaller = max(2, larger // 8)
    first, each = _trial(evaluator, larger, select)
    if larger == images:
        return RefinementCost(first, each + validation)
    least = _trial(evaluator, smaller, select)[1] if smaller < larger else 0.0
    per_image = max(0.0, each - least) / (larger - smaller) if smaller < larger else each / larger
    return RefinementCost(first * images / larger, each + per_image * (images - larger) + validation)


def _trial(evaluator: Evaluator, images: int, select: bool) -> tuple[float, float]:
    """Seconds of the dense network's targets, and of the refinement of a network, on so many images."""
    how = {"refine": True, "refine_rows": Settings.refine_rows, "select": False, "augment": False, "recover": 0}
    trial = evaluator.with_settings(**how, refine_images=images, precision="fp32")
    masks = Masks.random(evaluator.space, keep=0.7, seed=0)
    begun = time.monotonic()
    trial._build.prepare_refinement()
    ready = time.monotonic()
    trial.slim(trial.selected(masks) if select else masks)
    return ready - begun, time.monotonic() - ready
