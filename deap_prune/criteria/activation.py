"""Criteria on what the next layers read of a filter."""

from __future__ import annotations

from torch import Tensor

from deap_prune.criteria.registry import register_criterion


@register_criterion("mean_activation", needs="activation_mean", reference="Molchanov et al. 2017, arXiv 1611.06440")
def mean_activation(activation_mean: Tensor) -> Tensor:
    """Mean absolute activation of the filter over images and positions, as the next layers read it."""
    return activation_mean


@register_criterion("apoz", needs="activation_rate", reference="Hu et al. 2016, arXiv 1607.03250")
def apoz(activation_rate: Tensor) -> Tensor:
    """One minus the average percentage of zeros after the ReLU."""
    return activation_rate
