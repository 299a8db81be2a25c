"""The error that remains in the next layers if a filter is pruned and the other filters are re-fitted."""

from __future__ import annotations

from deap_prune.criteria.passes.context import Calibration, StatisticsTable, add_statistic, gathers
from deap_prune.reconstruction import collect_grams, removal_errors


@gathers("unexplained")
def unexplained(calibration: Calibration, needs: frozenset[str]) -> StatisticsTable:
    """Relative squared errors, from the Gram matrices of the next layers' inputs: one forward pass, closed form."""
    table: StatisticsTable = {}
    grams = collect_grams(
        calibration.network,
        calibration.space,
        calibration.batches,
        forward=lambda model, batch: calibration.run(batch),
        seed=calibration.seed,
    )
    for group in calibration.space.groups:
        for member in group.layers("reader"):
            if member.layer in grams.layers:
                errors = removal_errors(grams.layers[member.layer], member.positions)
                add_statistic(table, group, "unexplained", errors, member)
    return table
