"""Norms over channels that libraries write by hand, known by the names of their classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deap_prune.structure.layers import Axis, LayerSpec, register_layer

# ConvNeXt, timm, NAFNet, Restormer, SSD, DETR, ...; a class that does something else is refused by the proof of trace.
_NAMES = (
    "LayerNorm LayerNorm2d LayerNormChannel ChannelNorm ChannelLayerNorm WithBias_LayerNorm BiasFree_LayerNorm "
    "RMSNorm RMSNorm2d RmsNorm RmsNorm2d SimpleNorm SimpleNorm2d GRN GlobalResponseNorm L2Norm FrozenBatchNorm2d"
)


@register_layer(nn.RMSNorm, *(f"*.{name}" for name in _NAMES.split()))
def norm_over_channels(layer: nn.Module) -> LayerSpec | None:
    """A module without children whose parameters and buffers are vectors of one length, the channels.

    The cost is measured by fvcore on narrowed copies, since it depends on how the norm is written.
    """
    tensors = {
        name: t for name, t in [*layer._parameters.items(), *layer._buffers.items()] if t is not None and t.dim()
    }
    lengths = {max(t.shape) for t in tensors.values()}
    if list(layer.children()) or len(lengths) != 1 or any(max(t.shape) != t.numel() for t in tensors.values()):
        return None
    (n,) = lengths
    dims = _channel_dims(layer, n)
    if n < 2 or not dims:
        return None
    axes: dict[str, tuple[Axis | None, ...]] = {
        name: tuple("out" if size == n else None for size in t.shape) for name, t in tensors.items()
    }
    widths: dict[str, Any] = {}
    for name, value in vars(layer).items():
        if isinstance(value, int) and not isinstance(value, bool) and value == n:
            widths[name] = "out"
        elif isinstance(value, tuple) and value == (n,):
            widths[name] = lambda n_in, n_out: (n_out,)
    return LayerSpec(
        in_channels=n,
        out_channels=n,
        tensors=axes,
        widths=widths,
        flops=None,
        role="norm",
        channel_dim=dims.get(4, next(iter(dims.values()))),
        channel_dims=dims,
        coupled=1,
        whole=True,
    )


def _channel_dims(layer: nn.Module, n: int) -> dict[int, int]:
    """Channel dimension by rank of the input, tested on small inputs with another size in all other dimensions."""
    like: Tensor = next(iter([*layer.parameters(), *layer.buffers()]))
    dims: dict[int, int] = {}
    for rank, dim in ((4, 1), (4, 3), (3, 2), (3, 1), (2, 1), (5, 1), (5, 4)):
        shape = [1 if d == 0 else 2 if n != 2 else 3 for d in range(rank)]
        shape[dim] = n
        try:
            with torch.no_grad():
                out = type(layer).forward(layer, torch.zeros(shape, dtype=like.dtype, device=like.device))
        except Exception:  # the forward of an unknown type may raise anything
            continue
        if isinstance(out, Tensor) and out.shape == torch.Size(shape):
            dims.setdefault(rank, dim)
    return dims
