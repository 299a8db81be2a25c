"""What each filter alone is worth to a layer that reads it, the other filters re-fitted: all filters at once."""

from __future__ import annotations

import torch
from torch import Tensor

from deap_prune.reconstruction.grams import LayerGram
from deap_prune.reconstruction.matrix import RIDGE, features
from deap_prune.structure.space import Ids


@torch.no_grad()
def removal_errors(gram: LayerGram, positions: Ids, *, ridge: float = RIDGE) -> Tensor:
    """Squared error of a layer's outputs that stays when one filter goes and the others make up for it, relative.

    With P the inverse of the moments, and F the features of the filter, the error is tr(W_F' (P_FF)^-1 W_F): the
    variance of the filter's features that the others do not explain, seen through its weights (block inversion; for a
    single feature |w|^2 / P_ii). The criterion is that of Xie et al. 2021 (arXiv 2108.13728) for one filter at a time.

    Args:
        gram: The layer's moments.
        positions: Where the filters' channels stand in the layer, (filters, uses of one channel); in a layer with
            blocks, the uses of one channel are in different blocks.
        ridge: Added to the moments, as a share of their diagonal's mean; more where they are not definite.

    Returns:
        Shape (filters,), as shares of the outputs' energy.
    """
    blocks = len(gram.mean)
    # An inverse in single precision would rank nearly equal filters by its rounding.
    ridged = gram.moments.to(torch.float64, copy=True)
    diagonal = ridged.diagonal(dim1=1, dim2=2)
    diagonal.add_(ridge * diagonal.mean(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny))
    factor, failed = torch.linalg.cholesky_ex(ridged)
    largest = diagonal.abs().amax(dim=1, keepdim=True)
    for share in (ridge, 0.1, 10.0):  # where features hardly vary, moments are rounding alone, below 0 at times
        if not bool(failed.any()):
            break
        diagonal.add_(share * largest * failed.bool()[:, None])
        factor, failed = torch.linalg.cholesky_ex(ridged)
    inverse = torch.cholesky_inverse(factor)
    channels = len(gram.channels.inputs) // blocks
    places = positions if blocks == 1 else positions.reshape(-1, 1)
    block = torch.as_tensor(places[:, 0] // channels, device=inverse.device)
    own = torch.as_tensor(features(places % channels, gram.taps, gram.form), device=inverse.device)
    precision = inverse[block[:, None, None], own[:, :, None], own[:, None, :]]
    weight = gram.weight[block[:, None], own].flatten(2).double()
    errors = (weight * torch.linalg.solve(precision, weight)).sum(dim=(1, 2))
    return errors.view(len(positions), -1).sum(dim=1) / gram.energy.sum().clamp_min(torch.finfo(torch.float32).tiny)
