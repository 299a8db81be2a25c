"""The criterion that measures whether the other filters can compensate for a pruned one."""

from __future__ import annotations

from torch import Tensor

from deap_prune.criteria.registry import register_criterion


@register_criterion("compensation", needs="unexplained", reference="Xie et al. 2021, arXiv 2108.13728")
def compensation(unexplained: Tensor) -> Tensor:
    """Relative error that remains in the next layer's output if the filter is pruned and the others are re-fitted."""
    return unexplained
