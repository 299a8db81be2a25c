"""The random baseline."""

from __future__ import annotations

from torch import Tensor

from deap_prune.criteria.registry import register_criterion


@register_criterion("random", needs="noise", reference="Mittal et al. 2018, arXiv 1801.10447", equivariant=False)
def random(noise: Tensor) -> Tensor:
    """Uniform noise: the baseline that every criterion should beat."""
    return noise
