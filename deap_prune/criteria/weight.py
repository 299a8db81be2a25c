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


@register_criterion("cosine", needs="weight", reference="He et al. 2019, arXiv 1811.00250 (their code's option)")
def cosine(weight: Tensor) -> Tensor:
    """How little the filter points where others do: 1 - mean over j != i of |cos(w_i, w_j)|."""
    return 1 - _cosines(weight).sum(dim=1) / max(1, len(weight) - 1)


@register_criterion("whc", needs="weight", reference="Chen et al. 2023, arXiv 2302.08185")
def whc(weight: Tensor) -> Tensor:
    """Norm times weighted dissimilarity: ||w_i|| sum_j ||w_j|| (1 - |cos(w_i, w_j)|), j != i."""
    norms = weight.norm(dim=1)
    return norms * (norms.sum() - norms - _cosines(weight) @ norms)


@register_criterion("correlation", needs="weight", reference="Singh et al. 2020, arXiv 1811.10559")
def correlation(weight: Tensor) -> Tensor:
    """1 - |Pearson r| with the nearest filter left when this one goes; of the closest pair the smaller goes first."""
    near = _cosines(weight - weight.mean(dim=1, keepdim=True)).cpu()
    norms, scores = weight.norm(dim=1).cpu(), torch.ones(len(weight), dtype=near.dtype)
    largest, twin = near.max(dim=1)
    for _ in range(len(weight) - 1):
        i = int(largest.argmax())
        goes = i if norms[i] <= norms[twin[i]] else int(twin[i])
        scores[goes] = 1 - largest[i]
        near[goes], near[:, goes], largest[goes] = -1, -1, -1
        widowed = ((twin == goes) & (largest >= 0)).nonzero().flatten()
        largest[widowed], twin[widowed] = near[widowed].max(dim=1)
    return scores


@register_criterion("lamp", needs="weight", reference="Lee et al. 2021, arXiv 2010.07611, on filters")
def lamp(weight: Tensor) -> Tensor:
    """Share of the squared norm left by then: ||w_i||^2 / sum of ||w_j||^2 over j at least as large.

    It ranks a layer's filters as ``l2`` does; its scale is what differs, made to compare layers with each other.
    """
    ascending, order = weight.square().sum(dim=1).sort()
    left = ascending.flip(0).cumsum(dim=0).flip(0)
    left = left[torch.searchsorted(ascending, ascending)]  # equal norms have equal scores
    return torch.empty_like(left).index_copy(0, order, ascending / left.clamp_min(1e-30))


@register_criterion("svd", needs="weight", reference="after Yeom et al. 2021, arXiv 2103.10858; share: ours")
def svd(weight: Tensor) -> Tensor:
    """The filter's share of the nuclear norm of the layer's matrix W = U S V^T: sum_r s_r u_ir^2 / sum_r s_r."""
    u, s, _ = torch.linalg.svd(weight, full_matrices=False)
    return (u.square() * s).sum(dim=1) / s.sum().clamp_min(1e-30)


@register_criterion("out_l1", needs="out_weight", reference="He et al. 2017, arXiv 1707.06168 (a baseline there)")
def out_l1(out_weight: Tensor) -> Tensor:
    """L1 norm of the weights by which the next layers read the filter: sum |w|."""
    return out_weight.abs().sum(dim=1)


def _cosines(rows: Tensor) -> Tensor:
    """|cos| between rows, 0 with itself; a row of zeros, which is no loss, is like every other (1)."""
    norms = rows.norm(dim=1, keepdim=True)
    unit = rows / norms.clamp_min(1e-30)
    dead = norms == 0
    near = (unit @ unit.T).abs().masked_fill(dead | dead.T, 1.0)
    return near.fill_diagonal_(0)
