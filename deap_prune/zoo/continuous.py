"""Parametric continuous convolution on point sets, and a classifier with it.

After Wang, Suo, Ma, Pokrovsky and Urtasun, "Deep Parametric Continuous Convolutional Neural Networks", CVPR 2018.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deap_prune.errors import ModelError
from deap_prune.structure.layers import LayerSpec, register_layer


class ContinuousConv(nn.Module):
    """Convolution on point sets: the kernel is a small MLP of the difference of two points' coordinates.

    ``y[o, i] = bias[o] + sum_j sum_c g[o, c](p_i - p_j) x[c, j]`` over the points j within ``radius`` of point i
    (Wang et al. 2018, equation 3), where ``g(d) = weight @ relu(A d + a)``. As g is linear in ``weight``, the sum over
    neighbours runs over the hidden units first, and ``weight`` is applied once per point instead of once per pair.

    Args:
        in_channels: Input features of a point.
        out_channels: Output features of a point.
        radius: Radius of the neighbourhood, in units of the coordinates; a point is a neighbour of itself.
        hidden: Number of hidden units of the MLP.
        dims: Number of coordinates of a point.

    Raises:
        ModelError: If a number is not positive.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, radius: float = 2.0, hidden: int = 16, dims: int = 2
    ) -> None:
        super().__init__()
        if min(in_channels, out_channels, radius, hidden, dims) <= 0:
            raise ModelError(
                f"ContinuousConv({in_channels}, {out_channels}, radius={radius}, hidden={hidden}, dims={dims}): "
                "give positive numbers"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.radius = radius
        self.hidden = nn.Linear(dims, hidden)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, hidden))
        self.bias = nn.Parameter(torch.empty(out_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights."""
        self.hidden.reset_parameters()
        bound = 1 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, points: Tensor) -> Tensor:
        """Features (N, in_channels, P) at points (N, P, dims) to features (N, out_channels, P)."""
        offsets = points.unsqueeze(2) - points.unsqueeze(1)
        near = (offsets.square().sum(-1, keepdim=True) <= self.radius**2).to(x)
        kernel = F.relu(self.hidden(offsets)) * near  # (N, P, P, hidden)
        gathered = torch.matmul(kernel.transpose(2, 3), x.transpose(1, 2).unsqueeze(1))  # (N, P, hidden, in_channels)
        weight = self.weight.transpose(1, 2).flatten(1)
        return F.linear(gathered.flatten(2), weight, self.bias).transpose(1, 2)

    def extra_repr(self) -> str:
        """The sizes, for print(model)."""
        return f"{self.in_channels}, {self.out_channels}, radius={self.radius:g}"


@register_layer(ContinuousConv)
def _continuous_conv(layer: ContinuousConv) -> LayerSpec:
    dims, hidden = layer.hidden.in_features, layer.hidden.out_features
    return LayerSpec(
        in_channels=layer.in_channels,
        out_channels=layer.out_channels,
        tensors={"weight": ("out", "in", None), "bias": ("out",)},
        widths={"in_channels": "in", "out_channels": "out"},
        flops=lambda x, y: {"in*out": x[2] * hidden, "in": x[2] ** 2 * hidden, "1": x[2] ** 2 * dims * hidden},
        role="filter",
    )


class PointClassifier(nn.Module):
    """Continuous convolutions with batch norm, the mean over the points, and one linear layer.

    Args:
        in_channels: Input features of a point.
        num_classes: Number of classes.
        widths: Channels of the convolutions.
        radius: Radius of each convolution's neighbourhood, in units of the coordinates.
        dims: Number of coordinates of a point.

    Raises:
        ModelError: If a number is not positive, or ``widths`` is empty.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        *,
        widths: Sequence[int] = (16, 32, 32),
        radius: float = 2.0,
        dims: int = 2,
    ) -> None:
        super().__init__()
        if not widths or num_classes < 1:
            raise ModelError(
                f"widths={tuple(widths)}, num_classes={num_classes}: give at least one width and one class"
            )
        sizes = pairwise((in_channels, *widths))
        self.convs = nn.ModuleList(ContinuousConv(a, b, radius=radius, dims=dims) for a, b in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in widths)
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, features: Tensor, points: Tensor) -> Tensor:
        """Features (N, in_channels, P) at points (N, P, dims) to logits (N, num_classes)."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            features = F.relu(norm(conv(features, points)))
        return cast(Tensor, self.fc(features.mean(2)))


def brightest_points(images: Tensor, n: int = 32) -> tuple[Tensor, Tensor]:
    """Point sets from images: the ``n`` brightest pixels of each image.

    Args:
        images: Images, shape (N, C, H, W).
        n: Number of points per set.

    Returns:
        Features (N, C, n), the values of the pixels, and points (N, n, 2), their rows and columns in pixels.

    Raises:
        ModelError: If the images have fewer than ``n`` pixels.
    """
    _, _, height, width = images.shape
    if not 1 <= n <= height * width:
        raise ModelError(f"{n} points of {height}x{width} pixels; give 1 to {height * width}")
    chosen = images.sum(1).flatten(1).topk(n).indices
    features = images.flatten(2).take_along_dim(chosen.unsqueeze(1), dim=2)
    return features, torch.stack([chosen // width, chosen % width], dim=2).to(images)
