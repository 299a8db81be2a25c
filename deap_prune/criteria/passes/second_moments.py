"""What the other filters cannot make up for, in closed form from the second moments of what the next layers read."""

from __future__ import annotations

import torch

from deap_prune.criteria.passes.context import Calibration, Found, add, gathers
from deap_prune.reconstruction import Grams, collect_grams, eliminate, removal_errors


@gathers("unexplained", "elimination_cost")
def second_moments(calibration: Calibration, needs: frozenset[str]) -> Found:
    """Gather the statistics from moments that one forward pass collects."""
    grams = collect_grams(
        calibration.network,
        calibration.space,
        calibration.batches,
        forward=lambda model, batch: calibration.run(batch),
        seed=calibration.seed,
    )
    values: Found = {}
    if "unexplained" in needs:
        _add_unexplained(values, calibration, grams)
    if "elimination_cost" in needs:
        for group in calibration.space.groups:
            if (result := eliminate(group, grams)) is not None:
                add(values, group, "elimination_cost", torch.from_numpy(result.scores))
    return values


def _add_unexplained(values: Found, calibration: Calibration, grams: Grams) -> None:
    """The error of removing each filter alone, for every layer that reads it."""
    for group in calibration.space.groups:
        for member in group.layers("reader"):
            if member.layer in grams.layers:
                errors = removal_errors(grams.layers[member.layer], member.positions)
                add(values, group, "unexplained", errors, member)
