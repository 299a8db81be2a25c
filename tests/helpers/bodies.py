"""Bodies of small networks, one hard coupling each, and the head around them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d


def conv(n_in: int, n_out: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, kernel, **{"padding": kernel // 2, **options})


def conv_bn(n_in: int, n_out: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    return nn.Sequential(conv(n_in, n_out, kernel, bias=False, **options), nn.BatchNorm2d(n_out))


class Head(nn.Module):
    """A stem, a body, global average pooling, a linear layer."""

    def __init__(self, body: nn.Module, width: int, out: int, classes: int = 5) -> None:
        super().__init__()
        self.stem = conv_bn(3, width)
        self.body = body
        self.fc = nn.Linear(out, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.body(F.relu(self.stem(x))), 1).flatten(1))


class Residual(nn.Module):
    """A block with a 1x1 shortcut, then one with an identity."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv_bn(6, 10, stride=2), conv_bn(10, 12)
        self.short = conv_bn(6, 12, 1, stride=2)
        self.conv3, self.conv4 = conv_bn(12, 8), conv_bn(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))) + self.short(x))
        return F.relu(self.conv4(F.relu(self.conv3(x))) + x)


class OptionA(nn.Module):
    """He et al.'s parameter-free shortcut as most people write it: F.pad of a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = conv_bn(6, 10, stride=2), conv_bn(10, 12), conv_bn(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x)))
        return F.relu(self.conv3(F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3)))))


class Separable(nn.Module):
    """Expand, depthwise, squeeze and excite, project: MobileNetV3's block, with a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depth, self.project = conv_bn(6, 12, 1), conv_bn(12, 12, groups=12), conv_bn(12, 6, 1)
        self.squeeze, self.excite = conv(12, 5, 1), conv(5, 12, 1)
        self.widen = conv_bn(6, 12, groups=6)  # depthwise with two outputs for each input

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.depth(F.relu6(self.expand(x))))
        y = y * F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return F.relu(self.widen(x + self.project(y)))


class Grouped(nn.Module):
    """One grouped convolution, and two in a row."""

    def __init__(self, in_a_row: bool) -> None:
        super().__init__()
        self.first = conv_bn(6, 16, groups=2)
        self.grouped = conv_bn(16, 24, groups=4)
        self.second = conv_bn(24, 16, groups=8) if in_a_row else conv_bn(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.grouped(F.relu(self.first(x))))))


class Dense(nn.Module):
    """DenseNet's concatenation: BN and convolution read all that came before."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (6, 11, 16))
        self.convs = nn.ModuleList(conv(n, 5) for n in (6, 11))

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.convs, strict=False):
            x = torch.cat([layer(F.relu(norm(x))), x], dim=1)
        return F.relu(self.norms[-1](x))


class Flatten(nn.Module):
    """VGG as of 2014: every pixel of every channel is a feature of the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(3, 6), conv(6, 5)
        self.fc1, self.fc2 = nn.Linear(5 * 16, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.avg_pool2d(F.leaky_relu(self.conv2(x)), 1)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class LayerScale(nn.Module):
    """ConvNeXt's residual branch, scaled by a parameter that no layer owns."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.back = conv(6, 12, 1), conv(12, 6, 1)
        self.scale = nn.Parameter(torch.full((6, 1, 1), 1e-6))
        self.offset = nn.Parameter(torch.zeros(12))

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.wide(x) + self.offset.view(1, -1, 1, 1))
        return x + self.scale * self.back(y)


class Shared(nn.Module):
    """One convolution used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.out = conv(6, 6), conv_bn(6, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.again(F.relu(self.again(x)))))


class Shuffle(nn.Module):
    """ShuffleNet: one half goes by, the halves are concatenated and their channels interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv_bn(4, 8, 1), nn.ReLU(), conv_bn(8, 8, groups=8), conv_bn(8, 4, 1), nn.ReLU())
        self.last = conv_bn(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        stay, go = x.chunk(2, dim=1)
        x = torch.cat((stay, self.branch(go)), dim=1)
        n, _, h, w = x.shape
        return F.relu(self.last(x.view(n, 2, -1, h, w).transpose(1, 2).reshape(n, -1, h, w)))


class Norms(nn.Module):
    """Normalisation over channels, position by position and in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(6, 12), nn.GroupNorm(3, 12)
        self.conv2, self.norm2, self.slope = conv(12, 8), nn.GroupNorm(1, 8), nn.PReLU(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.slope(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class NormsByChannel(nn.Module):
    """Normalisation of each channel by itself: of its own image, by fixed and by tracked statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(6, 9), nn.InstanceNorm2d(9)
        self.conv2, self.norm2 = conv(9, 8), FrozenBatchNorm2d(8)
        self.conv3, self.norm3 = conv(8, 7), nn.InstanceNorm2d(7, affine=True)
        self.conv4, self.norm4 = conv(7, 8), nn.InstanceNorm2d(8, affine=True, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        for number in "1234":
            x = F.relu(getattr(self, f"norm{number}")(getattr(self, f"conv{number}")(x)))
        return x


class Attention(nn.Module):
    """Convolutions, then an encoder layer whose attention stays dense; a layer is idle, and dropout is functional."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv_bn(6, 9), conv_bn(9, 8)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True), 1)
        self.idle = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.conv1(x)), 0.5, self.training)
        x = self.conv2(x)
        return self.encoder(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)


class ChannelsLast(nn.Module):
    """ConvNeXt's block: linear layers and a LayerNorm on the last dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.norm = conv(6, 6, groups=6), nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 14), nn.Linear(14, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        return x + self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)


class Decoder(nn.Module):
    """Down and up again with a skip: strided, transposed, padding="same", interpolation, pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.down = conv_bn(6, 10, stride=2)
        self.same = nn.Conv2d(10, 8, 3, padding="same", dilation=2)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.fine, self.coarse, self.merge = conv(6, 5), conv(6, 20, stride=2), conv(10, 7)

    def forward(self, x: Tensor) -> Tensor:
        y = x + F.relu(self.up(F.relu(self.same(F.relu(self.down(x))))))
        near = F.interpolate(F.avg_pool2d(self.fine(y), 2), scale_factor=2, mode="nearest")
        return F.relu(self.merge(torch.cat([near, F.pixel_shuffle(self.coarse(y), 2)], dim=1)))


class Transposed(nn.Module):
    """Transposed convolutions: in blocks, and depthwise with two filters a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.blocked = conv_bn(6, 8), nn.ConvTranspose2d(8, 12, 2, stride=2, groups=4)
        self.between, self.each = conv_bn(12, 5), nn.ConvTranspose2d(5, 10, 3, padding=1, groups=5)
        self.after = conv(10, 7)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.after(self.each(F.relu(self.between(F.relu(self.blocked(F.relu(self.before(x)))))))))
