"""VGG with batch norm for 32x32 images.

As in Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from deap_prune.errors import ModelError

_WIDTHS = (64, 128, 256, 512, 512)


class CifarVGG(nn.Module):
    """Five stacks of 3x3 convolutions with max-pools between, a global average, and one linear layer.

    Args:
        convolutions: Number of convolutions in each of the five stacks (64, 128, 256, 512 and 512 channels).
        num_classes: Number of classes.

    Raises:
        ModelError: If the number of stacks is not five, or a count is not positive.
    """

    def __init__(self, convolutions: Sequence[int], num_classes: int) -> None:
        super().__init__()
        if len(convolutions) != len(_WIDTHS) or min(num_classes, *convolutions) < 1:
            raise ModelError(
                f"convolutions={tuple(convolutions)}, num_classes={num_classes}: give five positive numbers "
                "of convolutions, (2, 2, 4, 4, 4) for VGG-19, and a positive num_classes"
            )
        layers: list[nn.Module] = []
        channels = 3
        for stack, (count, width) in enumerate(zip(convolutions, _WIDTHS, strict=True)):
            if stack:
                layers.append(nn.MaxPool2d(2))
            for _ in range(count):
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W), H and W at least 16, to logits (N, num_classes)."""
        x = F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        return cast(Tensor, self.classifier(x))


def vgg16(num_classes: int = 100) -> CifarVGG:
    """VGG-16 with batch norm, 13 convolutions (Liu et al. 2017), random weights, inputs (N, 3, 32, 32)."""
    return CifarVGG((2, 2, 3, 3, 3), num_classes)


def vgg19(num_classes: int = 100) -> CifarVGG:
    """VGG-19 with batch norm, 16 convolutions (Liu et al. 2017), random weights, inputs (N, 3, 32, 32)."""
    return CifarVGG((2, 2, 4, 4, 4), num_classes)
