"""Criteria on what the next layers read of a filter."""

from __future__ import annotations

import torch
from torch import Tensor

from deap_prune.criteria.registry import register_criterion

BINS = 10


@register_criterion("mean_activation", needs="activation_mean", reference="Molchanov et al. 2017, arXiv 1611.06440")
def mean_activation(activation_mean: Tensor) -> Tensor:
    """Mean absolute activation of the filter over images and positions, as the next layers read it."""
    return activation_mean


@register_criterion("apoz", needs="activation_rate", reference="Hu et al. 2016, arXiv 1607.03250")
def apoz(activation_rate: Tensor) -> Tensor:
    """One minus the average percentage of zeros after the ReLU."""
    return activation_rate


@register_criterion("entropy", needs="activation_pooled", reference="Luo and Wu 2017, arXiv 1706.05791")
def entropy(activation_pooled: Tensor) -> Tensor:
    """Entropy, in nats, of the filter's pooled activation over the images, in ten equal bins: -sum p log p."""
    low, high = activation_pooled.amin(dim=0), activation_pooled.amax(dim=0)
    place = (activation_pooled - low) / (high - low).clamp_min(1e-30) * BINS
    bins = place.long().clamp(max=BINS - 1)
    counts = torch.zeros(BINS, activation_pooled.shape[1], device=bins.device, dtype=torch.float64)
    p = counts.scatter_add_(0, bins, torch.ones_like(bins, dtype=torch.float64)) / len(bins)
    return -torch.special.xlogy(p, p).sum(dim=0)


@register_criterion("hrank", needs="map_rank", reference="Lin et al. 2020, arXiv 2002.10179")
def hrank(map_rank: Tensor) -> Tensor:
    """Mean rank of the filter's feature map over the first 128 images; absent where the next layers read no map."""
    return map_rank


@register_criterion("chip", needs="independence", reference="Sui et al. 2021, arXiv 2110.13981")
def chip(independence: Tensor) -> Tensor:
    """Independence of the filter's map: nuclear norm of all maps less that without it, mean over 128 images."""
    return independence


@register_criterion("thinet", needs="contribution", reference="Luo et al. 2017, arXiv 1707.06342")
def thinet(contribution: Tensor) -> Tensor:
    """When the greedy choice lets the filter go: each time the one that changes the next layer's output least.

    The change is the squared sum of the contributions of all that have gone, over outputs drawn at random.
    """
    gram = (contribution.double() @ contribution.double().T).cpu()
    cost, turn = gram.diagonal().clone(), torch.zeros(len(gram), dtype=torch.float64)
    for step in range(len(gram)):
        goes = int(cost.argmin())
        turn[goes] = step
        cost += 2 * gram[goes]
        cost[goes] = torch.inf
    return turn


@register_criterion("kl", needs="divergence", reference="Luo and Wu 2020, arXiv 1911.08114 (CURL)")
def kl(divergence: Tensor) -> Tensor:
    """KL(p || p without the filter) of the network's outputs, in nats, mean over the first 256 images."""
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
