"""Criteria that look at what the other filters can make up for."""

from __future__ import annotations

from torch import Tensor

from deap_prune.criteria.registry import register_criterion


@register_criterion("compensation", needs="unexplained", reference="Xie et al. 2021, arXiv 2108.13728")
def compensation(unexplained: Tensor) -> Tensor:
    """Relative squared error of the next layer's output without the filter, all other filters re-fitted."""
    return unexplained
