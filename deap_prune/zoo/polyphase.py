"""Adaptive polyphase sampling: downsampling whose result does not depend on the origin of the grid.

After Chaman and Dokmanic, "Truly shift-invariant convolutional neural networks", CVPR 2021, arXiv 2011.14214.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from deap_prune.errors import ModelError
from deap_prune.structure.layers import LayerSpec, register_layer

_STEPS = 2**16


class AdaptivePolyphase(nn.Module):
    """Keep every ``stride``-th row and column, from the offset whose samples have the largest l2 norm.

    The ``stride ** 2`` offsets give the polyphase components of the input. A circular shift of the input moves and
    permutes them, so the largest one holds the same values. A network with circular padding and a global average pool
    then gives the same label for the shifted image (Chaman and Dokmanic 2021, section 4).

    Args:
        channels: Channels of the input and of the output.
        stride: Step in rows and columns, in pixels.

    Raises:
        ModelError: If a number is not positive; in the forward pass, if ``stride`` does not divide the map's sides.
    """

    def __init__(self, channels: int, stride: int = 2) -> None:
        super().__init__()
        if channels < 1 or stride < 1:
            raise ModelError(f"AdaptivePolyphase({channels}, stride={stride}): give positive numbers")
        self.channels = channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, channels, H / stride, W / stride)."""
        s = self.stride
        if x.shape[2] % s or x.shape[3] % s:
            raise ModelError(
                f"AdaptivePolyphase halves a map of {x.shape[2]}x{x.shape[3]} with stride {s}: only sides that {s} "
                "divides are invariant to shifts; pad or crop the images to such a size"
            )
        row, column = (offset.view(-1, 1, 1, 1, 1, 1) for offset in strongest(x, s))
        parts = x.unflatten(3, (-1, s)).unflatten(2, (-1, s))
        return parts.take_along_dim(column, dim=5).take_along_dim(row, dim=3).flatten(2, 3).flatten(3)

    def extra_repr(self) -> str:
        """The sizes, for print(model)."""
        return f"{self.channels}, stride={self.stride}"


@torch.no_grad()
def strongest(x: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Offset of the polyphase component with the largest l2 norm in each sample, exact under shifts.

    Floating-point sums depend on their order, which a shift changes. So values are first rounded to 1 / 65536 of the
    sample's largest value: squares of integers add up exactly in float64 (up to 2**21 values per component). Equal
    norms (two equal dots in an empty image) are separated by a number that depends on the arrangement of the values,
    not on shifts: the channels are summed with irregular weights, and the largest value of the circular correlation
    with an irregular map decides. Components that are equal in this number too are shifts of each other.

    Args:
        x: Feature map, shape (N, C, H, W).
        stride: Step of the grid, a divisor of H and W.

    Returns:
        First row and first column, in 0 .. stride - 1, each of shape (N,).
    """
    values = x.double()
    peak = values.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    values = (values / peak).mul_(_STEPS).round_()
    weights = _irregular(x.shape[1:2], values).view(-1, 1, 1)
    maps = torch.stack([values.square().sum(1), (values * weights).sum(1)])
    maps = maps.unflatten(3, (-1, stride)).unflatten(2, (-1, stride)).permute(0, 1, 3, 5, 2, 4).flatten(2, 3)
    norms, mixed = maps[0].sum((2, 3)), maps[1]
    size = mixed.shape[2:]
    spectrum = torch.fft.rfft2(mixed) * torch.fft.rfft2(_irregular(size, values)).conj()
    arrangement = torch.fft.irfft2(spectrum, s=size).amax((2, 3))
    choice = arrangement.masked_fill(norms < norms.amax(1, keepdim=True), -math.inf).argmax(1)
    return choice // stride, choice % stride


def _irregular(shape: torch.Size, like: Tensor) -> Tensor:
    """Fixed numbers of which no two integer combinations are equal."""
    return torch.arange(1, math.prod(shape) + 1, dtype=like.dtype, device=like.device).sin().view(shape)


@register_layer(AdaptivePolyphase)
def _polyphase(layer: AdaptivePolyphase) -> LayerSpec:
    """Each channel is sampled alike, but the norm reads all channels: under a mask it reads the kept ones only."""
    n = layer.channels
    return LayerSpec(in_channels=n, out_channels=n, widths={"channels": "out"}, coupled=1, whole=True)
