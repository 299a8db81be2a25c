"""The criterion that removes filters one after the other, each time the one that the rest replace best."""

from __future__ import annotations

from torch import Tensor

from deap_prune.criteria.registry import register_criterion


@register_criterion(
    "elimination", needs="elimination_cost", reference="Hassibi and Stork 1993; Meng et al. 2024, arXiv 2403.12983"
)
def elimination(elimination_cost: Tensor) -> Tensor:
    """Relative squared error of the next layers' outputs when the filter is removed, after all filters worth less."""
    return elimination_cost
