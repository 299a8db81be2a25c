"""Reference points: what other criteria are measured against."""

from __future__ import annotations

from torch import Tensor

from deap_prune.criteria.registry import register_criterion


@register_criterion("oracle", needs="loss_rise", reference="Molchanov et al. 2017, arXiv 1611.06440, sec. 2.1")
def oracle(loss_rise: Tensor) -> Tensor:
    """Rise of the loss when the next layers read zero instead of the filter, measured on the first 256 images."""
    return loss_rise


@register_criterion("random", needs="noise", reference="Mittal et al. 2018, arXiv 1801.10447", equivariant=False)
def random(noise: Tensor) -> Tensor:
    """Uniform noise: the reference point that every criterion has to beat."""
    return noise
