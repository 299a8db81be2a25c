"""Criteria on a filter's channel in the inputs of the next layers."""

from __future__ import annotations

import torch
from torch import Tensor

from deap_prune.criteria.registry import register_criterion

BINS = 10  # of the histogram for the entropy


@register_criterion("mean_activation", needs="activation_mean", reference="Molchanov et al. 2017, arXiv 1611.06440")
def mean_activation(activation_mean: Tensor) -> Tensor:
    """Mean absolute activation of the filter in the next layers' inputs, over images and positions."""
    return activation_mean


@register_criterion("apoz", needs="activation_rate", reference="Hu et al. 2016, arXiv 1607.03250")
def apoz(activation_rate: Tensor) -> Tensor:
    """One minus the average percentage of zeros after the ReLU."""
    return activation_rate


@register_criterion("entropy", needs="activation_pooled", reference="Luo and Wu 2017, arXiv 1706.05791")
def entropy(activation_pooled: Tensor) -> Tensor:
    """Entropy, in nats, of the filter's pooled activation over the images, in ten equal bins: -sum p log p."""
    low, high = activation_pooled.amin(dim=0), activation_pooled.amax(dim=0)
    bins = ((activation_pooled - low) / (high - low).clamp_min(1e-30) * BINS).long().clamp(max=BINS - 1)
    counts = torch.zeros(BINS, activation_pooled.shape[1], device=bins.device, dtype=torch.float64)
    p = counts.scatter_add_(0, bins, torch.ones_like(bins, dtype=torch.float64)) / len(bins)
    return -torch.special.xlogy(p, p).sum(dim=0)


@register_criterion("hrank", needs="map_rank", reference="Lin et al. 2020, arXiv 2002.10179")
def hrank(map_rank: Tensor) -> Tensor:
    """Mean rank of the filter's feature map over the first 128 images; absent if the next layers read no map."""
    return map_rank


@register_criterion("chip", needs="independence", reference="Sui et al. 2021, arXiv 2110.13981")
def chip(independence: Tensor) -> Tensor:
    """Nuclear norm of all feature maps minus that without the filter's map, mean over the first 128 images."""
    return independence


@register_criterion("thinet", needs="contribution", reference="Luo et al. 2017, arXiv 1707.06342")
def thinet(contribution: Tensor) -> Tensor:
    """Step at which greedy pruning removes the filter; each step changes the next layer's output least.

    The change is the squared sum of the contributions of all removed filters, over randomly chosen outputs.
    """
    gram = (contribution.double() @ contribution.double().T).cpu()
    cost, removal_step = gram.diagonal().clone(), torch.zeros(len(gram), dtype=torch.float64)
    for step in range(len(gram)):
        removed = int(cost.argmin())
        removal_step[removed] = step
        cost += 2 * gram[removed]
        cost[removed] = torch.inf
    return removal_step
