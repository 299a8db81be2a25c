"""Criteria on the weights; they need no data."""

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
    exact = weight.double()  # matrix products lose the distances of near equal filters in single precision
    return torch.cdist(exact, exact, compute_mode="use_mm_for_euclid_dist").sum(dim=1).to(weight.dtype)


@register_criterion("fermat", needs="weight", reference="Huang et al. 2021, arXiv 2004.11627")
def fermat(weight: Tensor) -> Tensor:
    """Distance to the layer's Fermat point F = argmin_x sum_j ||x - w_j||, by Weiszfeld's iteration."""
    point = weight.mean(dim=0)
    for _ in range(100):
        inverse_distance = 1 / (weight - point).norm(dim=1, keepdim=True).clamp_min(1e-12)
        next_point = (inverse_distance * weight).sum(dim=0) / inverse_distance.sum()
        if torch.allclose(next_point, point, rtol=1e-7, atol=0):
            break
        point = next_point
    return (weight - point).norm(dim=1)


@register_criterion("cosine", needs="weight", reference="He et al. 2019, arXiv 1811.00250 (their code's option)")
def cosine(weight: Tensor) -> Tensor:
    """One minus the mean similarity to the other filters: 1 - mean over j != i of |cos(w_i, w_j)|."""
    return 1 - _cosines(weight).sum(dim=1) / max(1, len(weight) - 1)


@register_criterion("whc", needs="weight", reference="Chen et al. 2023, arXiv 2302.08185")
def whc(weight: Tensor) -> Tensor:
    """Norm times weighted dissimilarity: ||w_i|| sum_j ||w_j|| (1 - |cos(w_i, w_j)|), j != i."""
    norms = weight.norm(dim=1)
    return norms * (norms.sum() - norms - _cosines(weight) @ norms)


@register_criterion("correlation", needs="weight", reference="Singh et al. 2020, arXiv 1811.10559")
def correlation(weight: Tensor) -> Tensor:
    """1 - |Pearson r| with the nearest remaining filter at the step at which greedy pruning removes the filter.

    Each step removes the filter with the smaller norm of the most correlated pair.
    """
    near = _cosines(weight - weight.mean(dim=1, keepdim=True)).cpu()
    norms, scores = weight.norm(dim=1).cpu(), torch.ones(len(weight), dtype=near.dtype)
    largest, nearest = near.max(dim=1)
    for _ in range(len(weight) - 1):
        i = int(largest.argmax())
        removed = i if norms[i] <= norms[nearest[i]] else int(nearest[i])
        scores[removed] = 1 - largest[i]
        near[removed], near[:, removed], largest[removed] = -1, -1, -1
        affected = ((nearest == removed) & (largest >= 0)).nonzero().flatten()
        largest[affected], nearest[affected] = near[affected].max(dim=1)
    return scores


@register_criterion("lamp", needs="weight", reference="Lee et al. 2021, arXiv 2010.07611, on filters")
def lamp(weight: Tensor) -> Tensor:
    """Share of the squared norm among filters at least as large: ||w_i||^2 / sum of ||w_j||^2 over ||w_j|| >= ||w_i||.

    Within a layer it ranks filters like ``l2``. Its scale makes scores comparable between layers.
    """
    ascending, order = weight.square().sum(dim=1).sort()
    remaining = ascending.flip(0).cumsum(dim=0).flip(0)
    remaining = remaining[torch.searchsorted(ascending, ascending)]  # equal norms have equal scores
    return torch.empty_like(remaining).index_copy(0, order, ascending / remaining.clamp_min(1e-30))


@register_criterion("svd", needs="weight", reference="after Yeom et al. 2021, arXiv 2103.10858; share: ours")
def svd(weight: Tensor) -> Tensor:
    """The filter's share of the nuclear norm of the layer's matrix W = U S V^T: sum_r s_r u_ir^2 / sum_r s_r."""
    u, s, _ = torch.linalg.svd(weight, full_matrices=False)
    return (u.square() * s).sum(dim=1) / s.sum().clamp_min(1e-30)


@register_criterion("out_l1", needs="out_weight", reference="He et al. 2017, arXiv 1707.06168 (a baseline there)")
def out_l1(out_weight: Tensor) -> Tensor:
    """L1 norm of the next layers' weights that multiply the filter's channel: sum |w|."""
    return out_weight.abs().sum(dim=1)


def _cosines(rows: Tensor) -> Tensor:
    """|cos| between rows, shape (rows, rows): 0 on the diagonal, 1 for rows of zeros, whose removal loses nothing."""
    norms = rows.norm(dim=1, keepdim=True)
    unit = rows / norms.clamp_min(1e-30)
    zero = norms == 0
    cosines = (unit @ unit.T).abs().masked_fill(zero | zero.T, 1.0)
    return cosines.fill_diagonal_(0)
