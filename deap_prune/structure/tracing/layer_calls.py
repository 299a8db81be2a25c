"""Uses of layers in a traced pass, and layers that carry the channels of another layer along."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from deap_prune.structure.layers import LayerSpec

Labels = NDArray[np.int64]
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class LayerCall:
    """One use of a layer: the labels of its input and output channels, and its cost as a polynomial in both widths.

    ``step`` is the number of the call in the dataflow of the pass.
    """

    name: str
    spec: LayerSpec
    inputs: Labels
    outputs: Labels
    flops: tuple[tuple[str, float], ...]
    step: int = -1


def carried_dim(layer: nn.Module, spec: LayerSpec, labels: Tensor, source: Tensor, output: Tensor) -> int | None:
    """The dimension with channels that a layer does not see as its own, and returns at the same size.

    A linear layer over tokens works on every channel by itself; a convolution with one filter slides along channels
    (efficient channel attention). None: the layer reads the channels, or its results are no channels.

    Args:
        layer: The layer.
        spec: Its description.
        labels: Labels of its input.
        source: Its input.
        output: Its output.
    """
    varying = [d for d, n in enumerate(labels.shape) if n > 1]
    if len(varying) != 1 or varying[0] == spec.axis(source.dim()) or output.dim() != source.dim():
        return None
    same = output.shape[varying[0]] == source.shape[varying[0]]
    return varying[0] if same and (is_pointwise(layer) or _slides(layer)) else None


def is_pointwise(layer: nn.Module) -> bool:
    """Whether a layer works on each position of its input by itself."""
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return layer.running_mean is not None
    if isinstance(layer, _CONVOLUTIONS):
        return _is_plain(layer) and layer.groups == 1 and all(k == 1 for k in layer.kernel_size)
    return type(layer).forward is nn.Linear.forward


def _slides(layer: nn.Module) -> bool:
    whole = isinstance(layer, _CONVOLUTIONS) and layer.groups == layer.out_channels == 1
    return whole and _is_plain(layer) and layer.padding_mode == "zeros"


def _is_plain(layer: nn.Module) -> bool:
    return any(type(layer).forward is kind.forward for kind in _CONVOLUTIONS)


def function_of(layer: nn.Module) -> str:
    """Name of the torch function that a convolution calls."""
    return f"conv{len(getattr(layer, 'kernel_size', ()))}d"


def total_cost(spec: LayerSpec, source: Tensor, output: Tensor) -> float:
    """FLOPs of a layer at full width."""
    factors = {"in*out": spec.in_channels * spec.out_channels, "in": spec.in_channels, "out": spec.out_channels}
    cost = spec.flops(tuple(source.shape), tuple(output.shape)) if spec.flops is not None else {}
    return sum(n * factors.get(powers, 1) for powers, n in cost.items())
