"""The criterion that looks at what the other filters can make up for, and the statistic it needs."""

from __future__ import annotations

from torch import Tensor

from deap_prune.criteria.passes.context import Calibration, Found, add, gathers
from deap_prune.criteria.registry import register_criterion
from deap_prune.reconstruction import collect_grams, removal_errors


@gathers("unexplained")
def unexplained(calibration: Calibration, needs: frozenset[str]) -> Found:
    """One forward pass for the Gram matrices of what every next layer reads; the rest is in closed form."""
    found: Found = {}
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
                add(found, group, "unexplained", errors, member)
    return found


@register_criterion("compensation", needs="unexplained", reference="Xie et al. 2021, arXiv 2108.13728")
def compensation(unexplained: Tensor) -> Tensor:
    """Error that stays in the next layer's output when the filter goes and the others are re-fitted, relative."""
    return unexplained
