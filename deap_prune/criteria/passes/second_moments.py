"""What the other filters cannot make up for, in closed form from the second moments of what the next layers read."""

from __future__ import annotations

import torch

from deap_prune.criteria.passes.context import Calibration, StatisticsTable, add_statistic, gathers
from deap_prune.progress import track
from deap_prune.reconstruction import Grams, collect_grams, eliminate, removal_errors


@gathers("unexplained", "elimination_cost")
def second_moments(calibration: Calibration, needs: frozenset[str]) -> StatisticsTable:
    """Relative squared errors of the next layers, from the moments that one forward pass collects."""
    grams = collect_grams(
        calibration.network,
        calibration.space,
        calibration.batches,
        forward=lambda model, batch: calibration.run(batch),
        seed=calibration.seed,
    )
    table: StatisticsTable = {}
    if "unexplained" in needs:
        _add_unexplained(table, calibration, grams)
    if "elimination_cost" in needs:
        for group in track(calibration.space.groups, "eliminating filters, by group", shown=calibration.progress):
            if (elimination := eliminate(group, grams, curve=False)) is not None:
                add_statistic(table, group, "elimination_cost", torch.from_numpy(elimination.scores))
    return table


def _add_unexplained(table: StatisticsTable, calibration: Calibration, grams: Grams) -> None:
    """The error of removing each filter alone, for every layer that reads it."""
    for group in calibration.space.groups:
        for member in group.layers("reader"):
            if member.layer in grams.layers:
                errors = removal_errors(grams.layers[member.layer], member.positions)
                add_statistic(table, group, "unexplained", errors, member)
