"""Criteria on the loss's first-order change when a filter goes."""

from __future__ import annotations

from torch import Tensor

from deap_prune.criteria.registry import register_criterion


@register_criterion("taylor_weight", needs="weight_taylor", reference="Molchanov et al. 2019, arXiv 1906.10771, eq. 8")
def taylor_weight(weight_taylor: Tensor) -> Tensor:
    """Squared first-order change of the loss without the filter: (sum_w w dL/dw)^2, mean over batches."""
    return weight_taylor.square().mean(dim=0)


@register_criterion("taylor_gate", needs="gate_taylor", reference="Molchanov et al. 2019, arXiv 1906.10771, sec. 3.3")
def taylor_gate(gate_taylor: Tensor) -> Tensor:
    """Squared first-order change when a unit gate after the BN closes: (gamma dL/dgamma + beta dL/dbeta)^2."""
    return gate_taylor.square().mean(dim=0)
