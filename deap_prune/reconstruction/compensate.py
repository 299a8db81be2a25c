"""Compensation in closed form: the weights of what reads a pruned group, re-fitted to the channels that stay.

The idea is Xie et al. 2021, "Pruning with Compensation" (arXiv 2108.13728); the form here is a ridge regression from
the kept to all channels, whose normal equations need the dense network's second moments alone: no data a candidate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deap_prune.reconstruction.batchnorm import set_statistics
from deap_prune.reconstruction.grams import Grams, LayerGram, places
from deap_prune.reconstruction.matrix import RIDGE, from_matrix, part, solve
from deap_prune.structure.layers import spec_of
from deap_prune.structure.masks import Masks
from deap_prune.structure.space import PruningSpace


@dataclass(frozen=True, eq=False)
class Refit:
    """The change of one layer's weights that makes up for the features it no longer reads.

    Tensors are (blocks, kept features, kept outputs of a block, 1 or taps) where nothing else is said.

    Attributes:
        kept: Numbers of the kept features, (blocks, kept features).
        outputs: Numbers of the kept outputs, (blocks, kept outputs of a block).
        weight: The dense weights of the kept features.
        cross: Moments of the kept features with what is aimed at.
        target: Of them, what the dense weights of the kept features leave unexplained.
        change: To the weights.
        ridge: What was added to the diagonal, (blocks, 1, 1, 1).
        energy: Variance (mean square, without an intercept) of what is aimed at: the dense outputs, and as much of what
            a shortcut has lost as the dense layer's features tell; (blocks, kept outputs).
        lost: The outputs whose shortcut lost its channel, (blocks, kept outputs); None where none did.
    """

    kept: Tensor
    outputs: Tensor
    weight: Tensor
    cross: Tensor
    target: Tensor
    change: Tensor
    ridge: Tensor
    energy: Tensor
    lost: Tensor | None

    @property
    def explained(self) -> Tensor:
        """Variance of each output after the fit, (blocks, kept outputs): w'C_kk w, where C_kk w = cross - r d."""
        return ((self.weight + self.change) * (self.cross - self.ridge * self.change)).sum(dim=(1, 3))

    @property
    def won(self) -> Tensor:
        """By how much the fit lowers the squared error of each output: 2 d'B - d'C_kk d, where (C_kk + r) d = B."""
        return (self.change * (self.target + self.ridge * self.change)).sum(dim=(1, 3))


@torch.no_grad()
def compensate(
    small: nn.Module, space: PruningSpace, masks: Masks, grams: Grams, *, statistics: bool = False, ridge: float = RIDGE
) -> None:
    """Re-fit, in place, the layers of a slimmed network that read fewer channels than before.

    For every such layer the weights w of the kept features k minimise E|x_k w + c - x W|^2 + r |w - W_k|^2, x being
    what the dense layer reads: w = W_k + (C_kk + r)^-1 C_kp W_p, p being what went. The constant c goes into the bias,
    or into the running mean of the batch normalisation that alone reads the layer; without either there is none, and C
    is not centred. A channel that is dead on the calibration data keeps its weights.

    Where a shortcut without weights (option A of He et al. 2016) brings a layer's outputs a channel that went, the
    layer is fitted to make what is missing too: x W + s, s being what was brought. The mean of s goes into the shift of
    the normalisation between them, and into its scale by how much s raises the variance.

    Args:
        small: ``slim(model, space, masks)``.
        space: The space.
        masks: What it keeps.
        grams: Of the dense network.
        statistics: Also set those normalisations' statistics in closed form (see ``propagate_bn``).
        ridge: r, as a share of the mean of C_kk's diagonal; larger where the moments are of few rows (see
            ``LayerGram.scarcity``).

    Raises:
        MaskError: If the masks don't fit the space.
    """
    keep = space.kept(masks)
    for name, gram in grams.layers.items():
        fit = refit(gram, keep, ridge)
        if fit is None:
            continue
        layer: Any = small.get_submodule(name)
        layer.weight.data.add_(from_matrix(fit.change, layer.weight, spec_of(layer), gram.form))
        if not gram.intercept:
            continue
        level = torch.einsum("bk,bkot->bo", gram.mean.gather(1, fit.kept), fit.weight + fit.change)
        shift = (gram.level.gather(1, fit.outputs) - level).flatten()
        _stand_in(small, gram, fit, layer)
        if gram.norm is None:
            layer.bias.data.add_(shift)
        elif statistics:
            set_statistics(small, gram, fit.outputs, level, fit.explained)
        else:
            norm: Any = small.get_submodule(gram.norm[0])
            norm.running_mean.sub_(shift)


def _stand_in(small: nn.Module, gram: LayerGram, fit: Refit, layer: Any) -> None:
    """Constant and scale for what a shortcut has lost and the layer makes now."""
    if gram.shortcut is None or fit.lost is None:
        return
    norm: Any = small.get_submodule(gram.norm[0]) if gram.norm else None
    level = gram.shortcut.level.gather(1, fit.outputs) * fit.lost
    (layer if norm is None else norm).bias.data.add_(level.flatten())
    if norm is None:
        return
    # Whoever sets its statistics from what it reads would shrink its outputs to the variance that they had.
    made = fit.lost & (gram.shortcut.growth.gather(1, fit.outputs) != 0)
    tiny = torch.finfo(fit.energy.dtype).tiny
    ratio = fit.energy / gram.energy.gather(1, fit.outputs).clamp_min(tiny)
    before = norm.running_var + norm.eps
    norm.running_var.mul_(torch.where(made, ratio, torch.ones_like(ratio)).flatten())
    norm.weight.data.mul_(((norm.running_var + norm.eps) / before).sqrt())


def refit(gram: LayerGram, keep: NDArray[np.bool_], ridge: float = RIDGE) -> Refit | None:
    """The fit of one layer under a mask, or None where nothing is missing.

    Args:
        gram: The layer.
        keep: Channels that stay, by id; see ``PruningSpace.kept``.
        ridge: Share of the mean of the kept features' variance.
    """
    numbers = places(gram, keep)
    if numbers is None:
        return None
    kept, gone, outputs = numbers
    weight, cross = part(gram.weight, kept, outputs), part(gram.cross, kept, outputs)
    gone_weight, energy = part(gram.weight, gone, outputs).flatten(2), gram.energy.gather(1, outputs)
    square, beside = part(gram.moments, kept, kept), part(gram.moments, kept, gone)
    target = beside @ gone_weight
    lost = None if gram.shortcut is None else gram.shortcut.lost(keep)
    if gram.shortcut is not None and lost is not None:
        lost = lost.gather(1, outputs)
        missing = part(gram.shortcut.cross, kept, outputs) * lost[:, None, :, None]
        cross, target = cross + missing, target + missing.flatten(2)
        energy = (energy + gram.shortcut.growth.gather(1, outputs) * lost).clamp_min(0)
    if lost is None and gone_weight.shape[1] < gone_weight.shape[2]:  # fewer to solve for: what went, not its outputs
        share, added = solve(square, beside, ridge * gram.scarcity)
        change = share @ gone_weight
    else:
        change, added = solve(square, target, ridge * gram.scarcity)
    changes = (target.view_as(weight), change.view_as(weight), added.unsqueeze(3))
    return Refit(kept, outputs, weight, cross, *changes, energy, lost)
