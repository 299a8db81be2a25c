"""Criteria on the weights alone: no data needed."""

from __future__ import annotations

import torch
from torch import Tensor

from deap_prune.criteria.registry import register_criterion


@register_criterion("l1", needs="weight", reference="Li et al. 2017, arXiv 1608.08710")
def l1(weight: Tensor) -> Tensor:
    """L1 norm of the filter: sum |w|."""
    return weight.abs().sum(dim=1)


@register_criterion("l2", needs="weight", reference="He et al. 2018, arXiv 1808.06866")
def l2(weight: Tensor) -> Tensor:
    """L2 norm of the filter: sqrt(sum w^2)."""
    return weight.norm(dim=1)


@register_criterion("fpgm", needs="weight", reference="He et al. 2019, arXiv 1811.00250")
def fpgm(weight: Tensor) -> Tensor:
    """Sum of the distances to the layer's other filters: sum_j ||w_i - w_j||."""
    return torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist").sum(dim=1)


@register_criterion("fermat", needs="weight", reference="Huang et al. 2021, arXiv 2004.11627")
def fermat(weight: Tensor) -> Tensor:
    """Distance to the layer's Fermat point F = argmin_x sum_j ||x - w_j||, found by Weiszfeld's iteration."""
    point = weight.mean(dim=0)
    for _ in range(100):
        pull = 1 / (weight - point).norm(dim=1, keepdim=True).clamp_min(1e-12)
        moved = (pull * weight).sum(dim=0) / pull.sum()
        if torch.allclose(moved, point, rtol=1e-7, atol=0):
            break
        point = moved
    return (weight - point).norm(dim=1)


@register_criterion("random", needs="noise", reference="Mittal et al. 2018, arXiv 1801.10447", equivariant=False)
def random(noise: Tensor) -> Tensor:
    """Uniform noise: the reference point that every criterion has to beat."""
    return noise
