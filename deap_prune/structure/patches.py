"""Patches: the inputs that a layer's weight is multiplied with at given output positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, ...]


def linear_patches(layer: nn.Linear, x: Tensor, picks: Tensor) -> Tensor:
    """Picked rows of the input; positions run over all dimensions but the last."""
    return x.reshape(-1, x.shape[-1])[picks].unsqueeze(-1)


def conv_patches(layer: nn.Conv2d, x: Tensor, picks: Tensor) -> Tensor:
    """Patches of a convolution at the picked positions; nothing else is read, and with zeros nothing is padded."""
    edges = []
    for d, (kernel, dilation) in enumerate(zip(layer.kernel_size, layer.dilation, strict=True)):
        span = dilation * (kernel - 1)
        before, after = (span // 2, span - span // 2) if layer.padding == "same" else (0, 0)
        if not isinstance(layer.padding, str):
            before = after = layer.padding[d]
        edges.append((before, after))
    if layer.padding_mode != "zeros":
        # F.pad counts from the last dimension.
        x = F.pad(x, [edge for pair in reversed(edges) for edge in pair], mode=layer.padding_mode)
        edges = [(0, 0)] * len(edges)
    return _windows(x, picks, layer.kernel_size, layer.stride, layer.dilation, edges)


def _windows(
    x: Tensor, picks: Tensor, kernel: Shape, stride: Shape, dilation: Shape, edges: Sequence[tuple[int, int]]
) -> Tensor:
    """Picked windows of an input (samples, channels, *space) with edges of zeros, shape (picks, channels, taps)."""
    n, space = len(kernel), x.shape[2:]
    sizes = [(space[d] + sum(edges[d]) - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in range(n)]
    sample, *places = torch.unravel_index(picks, (len(x), *sizes))
    inside: Tensor | None = None
    index = [sample.view(-1, *(1,) * n)]
    for d, place in enumerate(places):
        taps = torch.arange(kernel[d], device=x.device) * dilation[d] - edges[d][0]
        at = (place[:, None] * stride[d] + taps).view(-1, *(kernel[d] if k == d else 1 for k in range(n)))
        if any(edges[d]):
            within = (at >= 0) & (at < space[d])
            inside = within if inside is None else inside & within
            at = at.clamp(0, space[d] - 1)
        index.append(at)
    windows = x.movedim(1, -1)[tuple(index)]
    if inside is not None:
        windows = windows.masked_fill_(~inside.unsqueeze(-1), 0)
    return windows.movedim(-1, 1).flatten(2)


def conv_transpose_patches(layer: nn.ConvTranspose2d, x: Tensor, picks: Tensor) -> Tensor:
    """Patches of a transposed convolution: a convolution of the zero-interleaved input with the flipped kernel."""
    n = len(layer.kernel_size)
    steps = zip(x.shape[2:], layer.stride, strict=True)
    sparse = x.new_zeros(*x.shape[:2], *((size - 1) * stride + 1 for size, stride in steps))
    sparse[(slice(None), slice(None), *(slice(None, None, stride) for stride in layer.stride))] = x
    edges = []
    for d in range(n):
        edge = layer.dilation[d] * (layer.kernel_size[d] - 1) - cast(Shape, layer.padding)[d]
        edges.append((edge, edge + layer.output_padding[d]))
    rows = _windows(sparse, picks, layer.kernel_size, (1,) * n, layer.dilation, edges)
    return rows.flip(2)  # taps in reverse order: every kernel dimension turned around
