"""Small networks with one hard coupling each, and examples of what they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from deap_prune import zoo
from tests.helpers.bodies import (
    Attention,
    ChannelsLast,
    Decoder,
    Dense,
    Flatten,
    Grouped,
    Head,
    LayerScale,
    Norms,
    NormsByChannel,
    OptionA,
    Residual,
    Separable,
    Shared,
    Shuffle,
    Transposed,
    conv,
    conv_bn,
)


class Example(NamedTuple):
    """A network and what it is traced with."""

    model: nn.Module
    inputs: Any


class StandardisedConv(nn.Conv2d):
    """A convolution with a standardised weight and a gain (as in networks without normalisation)."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, self.gain.view(-1), training=True
        )
        return self._conv_forward(x, weight.reshape_as(self.weight), self.bias)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Standardised(nn.Module):
    """Standardised convolutions, plain and grouped, and a LayerNorm2d whose width equals the image's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = StandardisedConv(6, 8, 3, padding=1), StandardisedConv(8, 12, 3, padding=1, groups=2)
        self.norm, self.conv3 = LayerNorm2d(8), conv(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv3(F.relu(self.conv2(self.norm(self.conv1(x))))) + x)


class Auxiliary(nn.Module):
    """GoogLeNet's second head, which runs in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = conv_bn(6, 9), conv_bn(9, 8)
        self.head = nn.Sequential(conv_bn(9, 7), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(7, 5))

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.before(x))
        aux = self.head(x) if self.training else None
        x = F.relu(self.after(x))
        return x if aux is None else (x, aux)


class WithAuxiliary(Head):
    """The stem and head around it; two outputs in training."""

    def forward(self, x: Tensor) -> Any:
        found = self.body(F.relu(self.stem(x)))
        x, *rest = found if isinstance(found, tuple) else (found,)
        return (self.fc(x.mean((2, 3))), *rest) if rest else self.fc(x.mean((2, 3)))


class SplitBySize(nn.Module):
    """Split by a size that follows the width, and by one that does not."""

    def __init__(self, *, fixed: bool) -> None:
        super().__init__()
        self.before, self.after, self.fixed = conv(6, 8), conv(8, 6), fixed

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.before(x))
        a, b = torch.split(x, 4 if self.fixed else x.shape[1] // 2, dim=1)
        return F.relu(self.after(torch.cat([b, a], dim=1)))


class Sequence(nn.Module):
    """One-dimensional: convolution, BN and LayerNorm on a Linear net, several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm1 = nn.Conv1d(2, 8, 3), nn.BatchNorm1d(8)
        self.fc1, self.norm2 = nn.Linear(8, 10), nn.LayerNorm(10)
        self.fc2, self.norm3 = nn.Linear(10, 6), nn.BatchNorm1d(6)
        self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.norm1(self.conv(x))).mean(2)
        x = F.relu(self.norm3(self.fc2(F.relu(self.norm2(self.fc1(x))))))
        return {"a": self.a(x), "b": self.b(x)}


class TwoInputs(nn.Module):
    """Takes two images, as arguments or by name."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.both = conv(3, 6), conv(1, 6), conv(6, 8)
        self.fc = nn.Linear(8, 3)

    def forward(self, image: Tensor, depth: Tensor, gain: float = 1.0) -> Tensor:
        x = F.relu(self.left(image)) + gain * F.relu(self.right(depth))
        return self.fc(F.relu(self.both(x)).mean((2, 3)))


class TiedWeights(nn.Module):
    """Two convolutions that hold the same weight (not the same module)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = conv(6, 6), conv(6, 6), conv(6, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.out(x + self.b(F.relu(x + self.a(x)))))


class Flip(nn.Module):
    """Channels in reverse order: an index map, not a mixture."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(6, 8), conv(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x)).flip(1)))


class Keywords(nn.Module):
    """Layers that are called by keyword, one of them (which reads two tensors) in another order than it takes them."""

    def __init__(self, *, named: bool = True) -> None:
        super().__init__()
        self.named = named
        self.conv1, self.norm, self.conv2 = conv(6, 8), nn.GroupNorm(1, 8), conv_bn(8, 9)
        self.points = zoo.ContinuousConv(9, 7)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.cartesian_prod(torch.arange(x.shape[2]), torch.arange(x.shape[3])).to(x).expand(len(x), -1, -1)
        if not self.named:
            y = self.conv2(F.relu(self.norm(self.conv1(x))))
            return F.relu(self.points(F.relu(y).flatten(2), places)).unsqueeze(3)
        y = self.conv2[1](input=self.conv2[0](input=F.relu(self.norm(input=self.conv1(input=x)))))
        return F.relu(self.points(points=places, x=F.relu(y).flatten(2))).unsqueeze(3)


IMAGE = (1, 3, 8, 8)

NETWORKS: dict[str, Callable[[], Example]] = {
    "plain": lambda: Example(Head(nn.Sequential(conv_bn(6, 9), nn.ReLU(), conv(9, 7)), 6, 7), torch.randn(IMAGE)),
    "residual": lambda: Example(Head(Residual(), 6, 12), torch.randn(IMAGE)),
    "option_a": lambda: Example(Head(OptionA(), 6, 7), torch.randn(IMAGE)),
    "separable": lambda: Example(Head(Separable(), 6, 12), torch.randn(IMAGE)),
    "grouped": lambda: Example(Head(Grouped(False), 6, 16), torch.randn(IMAGE)),
    "grouped_in_a_row": lambda: Example(Head(Grouped(True), 6, 16), torch.randn(IMAGE)),
    "concat": lambda: Example(Head(Dense(), 6, 16), torch.randn(IMAGE)),
    "flatten": lambda: Example(Flatten(), torch.randn(IMAGE)),
    "layer_scale": lambda: Example(Head(LayerScale(), 6, 6), torch.randn(IMAGE)),
    "shared": lambda: Example(Head(Shared(), 6, 9), torch.randn(IMAGE)),
    "shuffle": lambda: Example(Head(Shuffle(), 8, 6), torch.randn(IMAGE)),
    "norms": lambda: Example(Head(Norms(), 6, 8), torch.randn(IMAGE)),
    "norms_by_channel": lambda: Example(Head(NormsByChannel(), 6, 8), torch.randn(IMAGE)),
    "attention": lambda: Example(Head(Attention(), 6, 8), torch.randn(IMAGE)),
    "channels_last": lambda: Example(Head(ChannelsLast(), 6, 6), torch.randn(IMAGE)),
    "decoder": lambda: Example(Head(Decoder(), 6, 7), torch.randn(IMAGE)),
    "transposed": lambda: Example(Head(Transposed(), 6, 7), torch.randn(IMAGE)),
    "standardised": lambda: Example(Head(Standardised(), 6, 6), torch.randn(IMAGE)),
    "auxiliary": lambda: Example(WithAuxiliary(Auxiliary(), 6, 8), torch.randn(IMAGE)),
    "split_by_size": lambda: Example(Head(SplitBySize(fixed=False), 6, 6), torch.randn(IMAGE)),
    "sequence": lambda: Example(Sequence(), torch.randn(1, 2, 12)),
    "tuple_inputs": lambda: Example(TwoInputs(), (torch.randn(1, 3, 8, 8), torch.randn(1, 1, 8, 8))),
    "dict_inputs": lambda: Example(
        TwoInputs(), {"image": torch.randn(1, 3, 8, 8), "depth": torch.randn(1, 1, 8, 8), "gain": 0.5}
    ),
    "tied_weights": lambda: Example(Head(TiedWeights(), 6, 4), torch.randn(IMAGE)),
    "keywords": lambda: Example(Head(Keywords(), 6, 7), torch.randn(IMAGE)),
    "flip": lambda: Example(Head(Flip(), 6, 4), torch.randn(IMAGE)),
    "digits_resnet": lambda: Example(zoo.digits_resnet(), torch.randn(1, 1, 8, 8)),
    "resnet20_a": lambda: Example(zoo.resnet20(10, "A"), torch.randn(1, 3, 16, 16)),
    "polyphase": lambda: Example(zoo.digits_resnet(width=6, shift_invariant=True), torch.randn(1, 1, 8, 8)),
    "points": lambda: Example(
        zoo.PointClassifier(2, 5, widths=(6, 9, 7), dims=3), (torch.randn(1, 2, 12), torch.randn(1, 12, 3))
    ),
    "points_by_name": lambda: Example(
        zoo.PointClassifier(1, 3, widths=(4, 6)), {"features": torch.randn(1, 1, 7), "points": torch.randn(1, 7, 2)}
    ),
    "resnet20_b": lambda: Example(zoo.resnet20(100, "B"), torch.randn(1, 3, 16, 16)),
}

LARGE: dict[str, Callable[[], Example]] = {
    "resnet56_a": lambda: Example(zoo.resnet56(10, "A"), torch.randn(1, 3, 16, 16)),
    "vgg16": lambda: Example(zoo.vgg16(10), torch.randn(1, 3, 16, 16)),
    "polyphase_a": lambda: Example(zoo.cifar_resnet(14, 10, "A", shift_invariant=True), torch.randn(1, 3, 16, 16)),
}


# ------------------------------------------------------------------ bodies that can't be pruned in part, and why
class Between(nn.Module):
    """A body with something between two convolutions; the second's own filters are prunable in any case."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.before, self.after, self.last = conv(6, 8), conv(8, 7), conv(7, 4)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.last(F.relu(self.after(self.between(F.relu(self.before(x)))))))


class OwnParameter(nn.Module):
    """A functional convolution with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 8, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, padding=1)


class FixedGain(nn.Module):
    """A tensor as wide as the channels, which is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.rand(8, 1, 1) + 0.5

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain.to(x)


def weight_normed() -> nn.Module:
    return parametrizations.weight_norm(conv(8, 8))


def plain_example(between: Callable[[Tensor], Tensor]) -> Example:
    return Example(Head(Between(between), 6, 4), torch.randn(IMAGE))
