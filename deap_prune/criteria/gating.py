"""Criteria that close or learn gates between a filter and the next layers."""

from __future__ import annotations

from torch import Tensor

from deap_prune.criteria.registry import register_criterion


@register_criterion("oracle", needs="loss_rise", reference="Molchanov et al. 2017, arXiv 1611.06440, sec. 2.1")
def oracle(loss_rise: Tensor) -> Tensor:
    """Rise of the loss if the next layers read zero instead of the filter, on the first 256 images."""
    return loss_rise


@register_criterion("kl", needs="divergence", reference="Luo and Wu 2020, arXiv 1911.08114 (CURL)")
def kl(divergence: Tensor) -> Tensor:
    """KL(p || q) in nats, p the network's outputs, q those without the filter, mean over the first 256 images."""
    return divergence


@register_criterion(
    "attention",
    needs="attention",
    reference="after Chang et al. 2020, doi 10.3233/JIFS-202290; training: ours",
    equivariant=False,
)
def attention(attention: Tensor) -> Tensor:
    """Mean gate of a squeeze-and-excitation block before the next layer, trained briefly on the frozen network."""
    return attention
