"""The CIFAR ResNets of He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deap_prune.errors import ModelError
from deap_prune.structure.layers import Indices, LayerSpec, register_layer
from deap_prune.zoo.polyphase import AdaptivePolyphase

Padding = Literal["zeros", "circular"]
Shortcut = Literal["A", "B"]
"""Shortcut between two stages: A, strided slice and zero channels; B, strided 1x1 convolution and batch norm."""


class PadShortcut(nn.Module):
    """The parameter-free shortcut (option A of He et al. 2016) as an index map, which can be narrowed.

    Output channel ``j`` is every ``stride``-th pixel of input channel ``source[j]``, or zero where ``source[j] == -1``.
    A new shortcut has the input channels in the middle and equally many zero channels on both sides.

    Args:
        in_channels: Channels of the input, at least 1.
        out_channels: Channels of the output, at least ``in_channels``.
        stride: Step of the slice in rows and columns, in pixels.

    Attributes:
        source: Input channel of each output channel, int64, shape (out_channels,); not in the state dict.

    Raises:
        ModelError: If a size is not positive, or there are more inputs than outputs.
    """

    source: Tensor

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        if not 1 <= in_channels <= out_channels or stride < 1:
            raise ModelError(
                f"PadShortcut from {in_channels} to {out_channels} channels with stride {stride}: it only "
                "adds channels, so give 1 <= in_channels <= out_channels and stride >= 1"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride
        source = torch.full((out_channels,), -1)
        before = (out_channels - in_channels) // 2
        source[before : before + in_channels] = torch.arange(in_channels)
        self.register_buffer("source", source, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        with_zero = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, 1))
        return with_zero.index_select(1, self.source % with_zero.shape[1])  # -1 is the zero channel, the last

    def extra_repr(self) -> str:
        """The sizes, for print(model)."""
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}"


def _conv3x3(in_channels: int, out_channels: int, stride: int, padding_mode: Padding) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, padding_mode=padding_mode, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut (He et al. 2016, figure 2).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first convolution and of the shortcut, in pixels.
        shortcut: "A" or "B", used only where the shapes differ; else the shortcut is the identity.
        padding_mode: Padding of the 3x3 convolutions, "zeros" or "circular".
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut, padding_mode: Padding = "zeros"
    ) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride, padding_mode)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels, 1, padding_mode)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module
        if stride == 1 and in_channels == out_channels:
            self.downsample = nn.Identity()
        elif shortcut == "A":
            self.downsample = PadShortcut(in_channels, out_channels, stride)
        else:
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.downsample(x))


class CifarResNet(nn.Module):
    """A 3x3 stem, three stages of basic blocks (the second and third halve the image), and one linear layer.

    The linear layer is called ``linear`` with shortcut A and ``fc`` with shortcut B, as in the published weights
    (akamaster/pytorch_resnet_cifar10, chenyaofo/pytorch-cifar-models).

    Args:
        blocks: Number of basic blocks in each stage.
        num_classes: Number of classes.
        shortcut: "A" or "B".
        widths: Channels of the three stages.
        in_channels: Channels of the images.
        shift_invariant: Use circular padding, and adaptive polyphase sampling instead of strides. Circular shifts of
            images whose sides are multiples of 4 then do not change the label. Parameters and multiply-adds are the
            same.

    Raises:
        ModelError: If the shortcut is neither "A" nor "B", or a count is not positive.
    """

    def __init__(
        self,
        blocks: int,
        num_classes: int,
        *,
        shortcut: Shortcut = "B",
        widths: Sequence[int] = (16, 32, 64),
        in_channels: int = 3,
        shift_invariant: bool = False,
    ) -> None:
        super().__init__()
        if shortcut not in ("A", "B"):
            raise ModelError(f"unknown shortcut '{shortcut}'; give 'A' (zero padding) or 'B' (1x1 convolution)")
        if len(widths) != 3 or min(blocks, num_classes, in_channels, *widths) < 1:
            raise ModelError(
                f"blocks={blocks}, num_classes={num_classes}, widths={tuple(widths)}, in_channels="
                f"{in_channels}: give positive numbers, and three widths"
            )
        padding_mode: Padding = "circular" if shift_invariant else "zeros"
        self.conv1 = _conv3x3(in_channels, widths[0], 1, padding_mode)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(blocks, widths[0], widths[0], 1, shortcut, shift_invariant)
        self.layer2 = _stage(blocks, widths[0], widths[1], 2, shortcut, shift_invariant)
        self.layer3 = _stage(blocks, widths[1], widths[2], 2, shortcut, shift_invariant)
        self.head_name = "linear" if shortcut == "A" else "fc"
        self.add_module(self.head_name, nn.Linear(widths[2], num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to logits (N, num_classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return cast(Tensor, self.get_submodule(self.head_name)(x))


def _stage(
    blocks: int, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut, shift_invariant: bool
) -> nn.Sequential:
    padding_mode: Padding = "circular" if shift_invariant else "zeros"
    layers: list[nn.Module] = []
    if shift_invariant and stride > 1:
        layers.append(AdaptivePolyphase(in_channels, stride))
        stride = 1
    layers.append(BasicBlock(in_channels, out_channels, stride, shortcut, padding_mode))
    layers += [BasicBlock(out_channels, out_channels, 1, shortcut, padding_mode) for _ in range(blocks - 1)]
    return nn.Sequential(*layers)


def cifar_resnet(
    depth: int = 56, num_classes: int = 10, shortcut: Shortcut = "A", *, shift_invariant: bool = False
) -> CifarResNet:
    """A CIFAR ResNet of the given depth (He et al. 2016).

    Args:
        depth: Number of weight layers on the main path, 6 n + 2: 20, 32, 44, 56, 110, ...
        num_classes: Number of classes.
        shortcut: "A" (zero-padded channels, no parameters) or "B" (1x1 convolution).
        shift_invariant: Use circular padding, and adaptive polyphase sampling instead of strides; see CifarResNet.

    Returns:
        The network with random weights, for inputs (N, 3, 32, 32).

    Raises:
        ModelError: If the depth is not 6 n + 2, or an argument is out of range.
    """
    if depth < 8 or depth % 6 != 2:
        raise ModelError(f"depth {depth} is not 6 n + 2 with n >= 1; give 8, 14, 20, 32, 44, 56 or 110, say")
    return CifarResNet((depth - 2) // 6, num_classes, shortcut=shortcut, shift_invariant=shift_invariant)


def resnet20(num_classes: int = 10, shortcut: Shortcut = "A") -> CifarResNet:
    """ResNet-20: 9 basic blocks; see cifar_resnet."""
    return cifar_resnet(20, num_classes, shortcut)


def resnet56(num_classes: int = 10, shortcut: Shortcut = "A") -> CifarResNet:
    """ResNet-56: 27 basic blocks; see cifar_resnet."""
    return cifar_resnet(56, num_classes, shortcut)


def cifar10_resnet20(shortcut: Shortcut = "A") -> CifarResNet:
    """ResNet-20 with 10 outputs; see cifar_resnet."""
    return resnet20(10, shortcut)


def cifar10_resnet56(shortcut: Shortcut = "A") -> CifarResNet:
    """ResNet-56 with 10 outputs; see cifar_resnet."""
    return resnet56(10, shortcut)


def cifar100_resnet20(shortcut: Shortcut = "B") -> CifarResNet:
    """ResNet-20 with 100 outputs; see cifar_resnet."""
    return resnet20(100, shortcut)


def cifar100_resnet56(shortcut: Shortcut = "B") -> CifarResNet:
    """ResNet-56 with 100 outputs; see cifar_resnet."""
    return resnet56(100, shortcut)


@register_layer(PadShortcut)
def _pad_shortcut(layer: PadShortcut) -> LayerSpec:
    """Describe the shortcut as an index map, so that the two stages are pruned independently."""

    def narrow(layer: PadShortcut, kept_in: Indices, kept_out: Indices) -> None:
        place = torch.full((layer.in_channels + 1,), -1)  # the last entry is for source -1, a zero channel
        place[torch.as_tensor(kept_in)] = torch.arange(len(kept_in))
        layer.source = place.to(layer.source.device)[layer.source[torch.as_tensor(kept_out)]]
        layer.in_channels, layer.out_channels = len(kept_in), len(kept_out)

    return LayerSpec(in_channels=layer.in_channels, out_channels=layer.out_channels, whole=True, narrow=narrow)
