"""Second moments of what a layer reads, as data: the moments of one layer, of a network, and of a shortcut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deap_prune.reconstruction.matrix import Form, features, refittable
from deap_prune.structure.space import Ids, LayerChannels, PruningSpace


@dataclass(frozen=True, eq=False)
class Shortcut:
    """Moments of what a parameter-free shortcut adds to the outputs of a layer.

    Tensors have shape (blocks, outputs of a block), unless stated.

    Attributes:
        sources: For each output of the layer, the id of the channel that the shortcut copies there; -1 where it adds
            nothing that can be pruned.
        level: Mean of what the shortcut adds.
        cross: Covariance of what the shortcut adds with the layer's features, (blocks, features, outputs of a block, 1
            or taps), in units of the layer's own outputs.
        growth: Increase of an output's variance when the layer also makes the part of the shortcut that its features
            explain, in the same units.
        unmade: Variance of the part that the features do not explain. It is the whole variance, and ``cross`` and
            ``growth`` are 0, where the normalisation has almost no scale and where moments are by channel.
        slope: Factor that the normalisation after the layer applies to its outputs; 1 without one.
    """

    sources: Ids
    level: Tensor
    cross: Tensor
    growth: Tensor
    unmade: Tensor
    slope: Tensor

    def lost(self, keep: NDArray[np.bool_]) -> Tensor | None:
        """Outputs whose shortcut channel is pruned, as a boolean tensor; None if there are none.

        Args:
            keep: Kept channels by id; see ``PruningSpace.kept``.
        """
        gone = ~keep[self.sources]
        return torch.as_tensor(gone, device=self.level.device).view_as(self.level) if gone.any() else None


@dataclass(frozen=True, eq=False)
class LayerGram:
    """Moments of one layer's features: its input patches, with its own stride, padding and dilation.

    Attributes:
        channels: The layer's entry in the space: its name, and the channels it reads and makes.
        form: ``"full"``: a feature is an input at a kernel tap; ``"channel"``: a feature is an input, all taps alike.
        taps: Number of kernel taps.
        mean: Mean of the features, (blocks, n).
        moments: Matrix of the least-squares problem, (blocks, n, n): the covariance of the features if an intercept
            takes up the mean, else their raw second moments.
        weight: Dense weights, (blocks, n, outputs of a block, 1 or taps); a view of the layer's weight if possible.
        bias: Whether the layer has a bias.
        norm: Name, mean and variance of the batch normalisation that is the only reader of the output, or None.
        rows: Number of feature rows behind the moments, in each block.
        shortcut: Moments of a shortcut that adds prunable channels to the outputs, or None.
    """

    channels: LayerChannels
    form: Form
    taps: int
    mean: Tensor
    moments: Tensor
    weight: Tensor
    bias: bool
    norm: tuple[str, Tensor, Tensor] | None
    rows: int
    shortcut: Shortcut | None = None

    @property
    def scarcity(self) -> float:
        """Factor on the ridge: 1 from 17 rows per feature up, 300 at one row per feature; see :func:`scarcity`."""
        return scarcity(self.mean.shape[1], self.rows)

    @property
    def intercept(self) -> bool:
        """Whether a constant can be added to the outputs: by a bias, or by the statistics of a normalisation."""
        return self.bias or self.norm is not None

    @cached_property
    def cross(self) -> Tensor:
        """Moments of the features with the dense outputs, in the shape of ``weight``."""
        return (self.moments @ self.weight.flatten(2)).view_as(self.weight)

    @cached_property
    def energy(self) -> Tensor:
        """Variance of each dense output (mean square without an intercept), (blocks, outputs of a block)."""
        return (self.weight * self.cross).sum(dim=(1, 3))

    @cached_property
    def level(self) -> Tensor:
        """Mean of each dense output, without the bias, (blocks, outputs of a block)."""
        return torch.einsum("bn,bnot->bo", self.mean, self.weight)


def scarcity(features: int, rows: int) -> float:
    """Factor on the ridge of a fit, at least 1: moments of few rows fit their own noise.

    Fitted on ResNet-20, CIFAR-10 (benchmarks/results/notes.json): with 0.5, 1, 2 and 4 rows per feature the
    loss is smallest at 600, 300, 60 and 10 times the usual ridge, with 20 rows at 1.

    Args:
        features: Number of features of a block.
        rows: Number of feature rows.
    """
    return max(1.0, 300 * (features / rows) ** 2)


@dataclass(frozen=True, eq=False)
class Grams:
    """Moments by layer name, of every layer that reads a filter group or whose outputs meet a shortcut."""

    layers: Mapping[str, LayerGram]

    @property
    def nbytes(self) -> int:
        """Memory of the matrices, in bytes."""
        return sum(g.moments.numel() * g.moments.element_size() for g in self.layers.values())

    def tell_variances(self, network: nn.Module, space: PruningSpace) -> bool:
        """Whether BN statistics follow from the moments: not by channel, and not after depthwise layers.

        Args:
            network: The dense network.
            space: Its space.
        """
        full = all(gram.form == "full" or gram.taps == 1 for gram in self.layers.values())
        specs = (refittable(network.get_submodule(e.name)) for e in space.layers if e.dim is None)
        return full and not any(spec is not None and spec.coupled for spec in specs)


def places(gram: LayerGram, keep: NDArray[np.bool_]) -> tuple[Tensor, Tensor, Tensor] | None:
    """Indices of kept features, removed features and kept outputs, each (blocks, n); None if nothing is missing.

    Args:
        gram: Moments of the layer.
        keep: Kept channels by id; see ``PruningSpace.kept``.
    """
    blocks = len(gram.weight)
    stays = keep[gram.channels.inputs].reshape(blocks, -1)
    if stays.all() and (gram.shortcut is None or gram.shortcut.lost(keep) is None):
        return None
    outputs = keep[gram.channels.outputs].reshape(blocks, -1)
    numbers = [np.nonzero(chosen)[1].reshape(blocks, -1) for chosen in (stays, ~stays, outputs)]
    read = [features(channels, gram.taps, gram.form) for channels in numbers[:2]]
    kept, gone, made = (torch.as_tensor(index, device=gram.weight.device) for index in (*read, numbers[2]))
    return kept, gone, made
