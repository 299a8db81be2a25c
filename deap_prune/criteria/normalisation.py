"""Criteria on the normalisation that follows a layer."""

from __future__ import annotations

from torch import Tensor

from deap_prune.criteria.registry import register_criterion


@register_criterion("bn_scale", needs="scale", reference="Liu et al. 2017, arXiv 1708.06519")
def bn_scale(scale: Tensor) -> Tensor:
    """Absolute scale of the batch normalisation after the filter: |gamma|."""
    return scale.abs()


@register_criterion("bn_shift", needs="shift", reference="Huang et al. 2021, arXiv 2004.11627")
def bn_shift(shift: Tensor) -> Tensor:
    """Absolute shift of the batch normalisation after the filter: |beta|."""
    return shift.abs()
