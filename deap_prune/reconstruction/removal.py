"""Error of removing one filter at a time, the other filters re-fitted: all filters of a layer at once."""

from __future__ import annotations

import torch
from torch import Tensor

from deap_prune.reconstruction.elimination import Reader
from deap_prune.reconstruction.grams import LayerGram
from deap_prune.reconstruction.matrix import RIDGE
from deap_prune.structure.space import Ids


@torch.no_grad()
def removal_errors(gram: LayerGram, positions: Ids, *, ridge: float = RIDGE) -> Tensor:
    """Relative squared error of a layer's outputs when one filter is removed and the others compensate for it.

    With P the inverse of the moments, and F the features of the filter, the error is tr(W_F' (P_FF)^-1 W_F): the
    variance of the filter's features that the others do not explain, seen through its weights (block inversion; for a
    single feature |w|^2 / P_ii). The criterion is that of Xie et al. 2021 (arXiv 2108.13728), one filter at a time.

    Args:
        gram: Moments of the layer.
        positions: Positions of each filter's channels in the layer, (filters, uses of one channel); in a layer with
            blocks, the uses of one channel are in different blocks.
        ridge: Added to the moments, as a share of their diagonal's mean; more where they are not definite.

    Returns:
        Shares of the outputs' energy, shape (filters,), in float64; NaN if the moments are not finite.
    """
    return Reader.of(gram, positions, ridge=ridge).costs()
