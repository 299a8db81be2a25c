"""Batch-normalisation statistics of a pruned network without a forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deap_prune.reconstruction.grams import Grams, LayerGram, places
from deap_prune.reconstruction.matrix import part, to_matrix
from deap_prune.structure.layers import spec_of
from deap_prune.structure.masks import Masks
from deap_prune.structure.space import PruningSpace


@torch.no_grad()
def propagate_bn(small: nn.Module, space: PruningSpace, masks: Masks, grams: Grams) -> None:
    """Set the statistics of every batch normalisation that follows a reader of pruned channels, in closed form.

    First order: the reader's inputs are taken to be distributed as in the dense network. Its output then has mean
    m'w and variance w'Cw; the dense statistics are moved by the difference and the ratio to the dense weights' own.
    ``compensate`` with ``statistics=True`` does the same at less cost.

    Args:
        small: A slimmed network, compensated or not; its weights are read, its statistics changed in place.
        space: The space.
        masks: What it keeps.
        grams: Of the dense network.

    Raises:
        MaskError: If the masks don't fit the space.
    """
    keep = space.kept(masks)
    for name, gram in grams.layers.items():
        numbers = places(gram, keep)
        if gram.norm is None or numbers is None:
            continue
        kept, _, outputs = numbers
        layer: Any = small.get_submodule(name)
        weight = to_matrix(layer.weight, spec_of(layer), gram.form)
        products = (part(gram.moments, kept, kept) @ weight.flatten(2)).view_as(weight)
        level = torch.einsum("bk,bkot->bo", gram.mean.gather(1, kept), weight)
        set_statistics(small, gram, outputs, level, (weight * products).sum(dim=(1, 3)))


def set_statistics(small: nn.Module, gram: LayerGram, outputs: Tensor, level: Tensor, variance: Tensor) -> None:
    """Statistics of the normalisation after a layer whose outputs have this mean and variance, (blocks, outputs)."""
    if gram.norm is None:
        return
    name, mean, var = gram.norm
    norm: Any = small.get_submodule(name)
    moved = mean.view_as(gram.level).gather(1, outputs) + (level - gram.level.gather(1, outputs))
    norm.running_mean.copy_(moved.flatten())
    tiny = torch.finfo(variance.dtype).tiny
    ratio = variance.clamp_min(0) / gram.energy.gather(1, outputs).clamp_min(tiny)
    norm.running_var.copy_((var.view_as(gram.level).gather(1, outputs) * ratio).flatten())
