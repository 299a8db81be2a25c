"""Patches: the inputs that a layer's weight is multiplied with at given output positions."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, ...]


def linear_patches(layer: nn.Linear, x: Tensor, picks: Tensor) -> Tensor:
    """Picked rows of the input; positions run over all dimensions but the last."""
    return x.reshape(-1, x.shape[-1])[picks].unsqueeze(-1)


def conv_patches(layer: nn.Conv2d, x: Tensor, picks: Tensor) -> Tensor:
    """Patches of a convolution, gathered from a view, so that only picked positions are unfolded."""
    pads: list[int] = []
    for d, (kernel, dilation) in enumerate(zip(layer.kernel_size, layer.dilation, strict=True)):
        span = dilation * (kernel - 1)
        before, after = (span // 2, span - span // 2) if layer.padding == "same" else (0, 0)
        if not isinstance(layer.padding, str):
            before = after = layer.padding[d]
        pads = [before, after, *pads]  # F.pad counts from the last dimension
    x = F.pad(x, pads, mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode)
    return _windows(x, picks, layer.kernel_size, layer.stride, layer.dilation)


def _windows(x: Tensor, picks: Tensor, kernel: Shape, stride: Shape, dilation: Shape) -> Tensor:
    """Picked windows of an input (samples, channels, *space), shape (picks, channels, taps)."""
    n = len(kernel)
    view = x
    for d in range(n):
        view = view.unfold(2 + d, dilation[d] * (kernel[d] - 1) + 1, stride[d])[..., :: dilation[d]]
    places = torch.unravel_index(picks, (len(x), *view.shape[2 : 2 + n]))
    return view.movedim(1, n + 1)[places].flatten(2)


def conv_transpose_patches(layer: nn.ConvTranspose2d, x: Tensor, picks: Tensor) -> Tensor:
    """Patches of a transposed convolution: a convolution of the zero-interleaved input with the flipped kernel."""
    n = len(layer.kernel_size)
    steps = zip(x.shape[2:], layer.stride, strict=True)
    sparse = x.new_zeros(*x.shape[:2], *((size - 1) * stride + 1 for size, stride in steps))
    sparse[(slice(None), slice(None), *(slice(None, None, stride) for stride in layer.stride))] = x
    pads: list[int] = []
    for d in range(n):
        edge = layer.dilation[d] * (layer.kernel_size[d] - 1) - cast(Shape, layer.padding)[d]
        pads = [edge, edge + layer.output_padding[d], *pads]
    rows = _windows(F.pad(sparse, pads), picks, layer.kernel_size, (1,) * n, layer.dilation)
    return rows.flip(2)  # taps in reverse order: every kernel dimension turned around
