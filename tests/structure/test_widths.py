"""Widths outside of layers: attributes, split sizes, position embeddings, buffers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.errors import ModelError
from tests.helpers.networks import IMAGE, conv
from tests.structure.laws import check_laws


class Checked(nn.Module):
    """Upsampling that checks its input's width, as in diffusers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels, self.conv = width, conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels
        return self.conv(F.interpolate(x, scale_factor=2.0))


class Scales(nn.Module):
    """Res2Net: parts of a width in an attribute."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width // 2
        self.wide, self.inner, self.last = conv(width, width), conv(width // 2, width // 2), conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.split(F.relu(self.wide(x)), self.width, 1)
        return F.relu(self.last(torch.cat([left, F.relu(self.inner(left + right))], 1)))


class Partial(nn.Module):
    """FasterNet: a convolution of the first channels only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [width // 4, width - width // 4]
        self.wide, self.part, self.last = conv(width, width), conv(width // 4, width // 4), conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        first, rest = torch.split(F.relu(self.wide(x)), self.sizes, dim=1)
        return F.relu(self.last(torch.cat([F.relu(self.part(first)), rest], 1)))


class Viewed(nn.Module):
    """Tokens of a width in an attribute."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dim, self.up, self.down = width, nn.Linear(width, 12), nn.Linear(12, width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.permute(0, 2, 3, 1).reshape(len(x), -1, self.dim)
        return self.down(F.relu(self.up(tokens))).transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])


class Mixed(nn.ModuleDict):
    """MixNet: each part of the channels has a convolution of its own."""

    def __init__(self, width: int) -> None:
        super().__init__({"0": conv(width - 2, width), "1": conv(2, 4)})
        self.splits, self.last = [width - 2, 2], conv(width + 4, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(x, self.splits, 1)
        return self["last"](torch.cat([self[str(i)](part) for i, part in enumerate(parts)], 1))

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, nn.Module):
            self[name] = value
        else:
            super().__setattr__(name, value)


class Identity(nn.Module):
    """InceptionNeXt: the first part has no layer of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = (width - 4, 2, 2)
        self.a, self.b = conv(2, 2, groups=2), conv(2, 2, groups=2)
        self.last = conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        same, a, b = torch.split(x, self.sizes, dim=1)
        return F.relu(self.last(torch.cat([same, self.a(a), self.b(b)], 1)))


class Paths(nn.Module):
    """SKNet: two halves of a width in an attribute, stacked and weighed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_channels, self.a, self.b = width, conv(width // 2, width), conv(width // 2, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(x, self.in_channels // 2, 1)
        paths = torch.stack([self.a(parts[0]), self.b(parts[1])], 1)
        return (paths * paths.mean((3, 4), keepdim=True).softmax(1)).sum(1)


class Front(nn.Module):
    """FasterNet for inference: a slice up to a width in an attribute, and the rest from it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.front, self.part, self.last = width // 4, conv(width // 4, width // 4), conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        first = self.part(x[:, : self.front])
        return F.relu(self.last(torch.cat([first, x[:, self.front :]], 1)))


class Scale(nn.Module):
    """PoolFormer: a gain that is viewed by a shape in an attribute."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shape, self.gain, self.last = (width, 1, 1), nn.Parameter(torch.rand(width)), conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.last(x)) * self.gain.view(self.shape)


class Heads(nn.Module):
    """LeViT: attention whose queries, keys and values have widths in attributes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads, self.key_dim, self.val_dim, self.inner = 2, 3, 4, 8
        self.qkv, self.out = nn.Linear(width, 2 * (3 + 3 + 4)), nn.Linear(8, width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).view(len(x), tokens.shape[1], self.num_heads, -1)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.val_dim], dim=3)
        weights = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1)).softmax(-1)
        values = (weights @ v.transpose(1, 2)).transpose(1, 2).reshape(len(x), -1, self.inner)
        return x + self.out(values).transpose(1, 2).reshape(x.shape)


class Stack(nn.Module):
    def __init__(self, block: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem, self.one, self.two = conv(3, 8), block(8), block(8)
        self.out, self.fc = conv(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.out(self.two(self.one(F.relu(self.stem(x)))))).mean((2, 3)))


BLOCKS: dict[str, tuple[Callable[[int], nn.Module], str]] = {
    "checked": (Checked, "one.channels, two.channels"),
    "scales": (Scales, "one.width, two.width"),
    "partial": (Partial, "one.sizes[0], one.sizes[1], two.sizes[0], two.sizes[1]"),
    "viewed": (Viewed, "one.dim, two.dim"),
    "mixed": (Mixed, "one.splits[0], one.splits[1], two.splits[0], two.splits[1]"),
    "identity": (Identity, ", ".join(f"{block}.sizes[{i}]" for block in ("one", "two") for i in range(3))),
    "paths": (Paths, "one.in_channels, two.in_channels"),
    "front": (Front, "one.front, two.front"),
    "scale": (Scale, "one.shape[0], two.shape[0]"),
    "heads": (Heads, ", ".join(f"{b}.{a}" for b in ("one", "two") for a in ("key_dim", "val_dim", "inner"))),
}


@pytest.mark.parametrize("case", BLOCKS)
def test_attributes_are_rewritten(case: str) -> None:
    block, attributes = BLOCKS[case]
    model = Stack(block)
    space = check_laws(model, torch.randn(IMAGE))
    assert set(map(str, space.widths)) == set(attributes.split(", "))
    assert f"attributes that slim rewrites: {space.widths[0]}" in str(space)
    assert {r.layer for r in space.refused} == {"fc"}
    assert [getattr(model.one, name) for name in ("channels", "width", "dim") if hasattr(model.one, name)] in (
        [[8], [4], []]
    )


class Quarters(nn.Module):
    """Slices at a quarter of the input's own width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.part, self.last = conv(width // 4, width // 4), conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[1] // 4
        return F.relu(self.last(torch.cat([self.part(x[:, :size]), x[:, size:]], 1)))


def test_slices_at_a_share_of_the_width() -> None:
    space = check_laws(Stack(Quarters), torch.randn(IMAGE))
    assert {r.layer for r in space.refused} == {"fc"} and not space.widths


class Blur(nn.Module):
    """A low-pass filter of every channel, with the number of channels in an attribute."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels = width
        self.register_buffer("kernel", torch.full((width, 1, 3, 3), 1 / 9))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.kernel, stride=2, groups=self.channels)


class Blurred(nn.Module):
    """ResNet with anti-aliasing: the filter's layer is in another branch of the module tree."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = conv(3, 8), nn.Sequential(nn.ReLU(), nn.Sequential(Blur(8)))
        self.out, self.fc = conv(8, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.out(self.pool(self.conv(x)))).mean((2, 3)))


def test_groups_of_a_functional_convolution_in_an_attribute() -> None:
    space = check_laws(Blurred(), torch.randn(IMAGE))
    assert {r.layer for r in space.refused} == {"fc"} and list(map(str, space.widths)) == ["pool.1.0.channels"]


class Gates(nn.Module):
    """WaveNet: one attribute is the width of gates, residuals and skips, which are different channels."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.stem, self.fc = 8, nn.Conv1d(3, 8, 1), nn.Linear(8, 4)
        self.wide = nn.ModuleList(nn.Conv1d(8, 16, 3, padding=1) for _ in range(2))
        self.both = nn.ModuleList(nn.Conv1d(8, 16, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        skips = torch.zeros_like(x)
        for wide, both in zip(self.wide, self.both, strict=True):
            y = wide(x)
            y = both(y[:, : self.channels].tanh() * y[:, self.channels :].sigmoid())
            x, skips = x + y[:, : self.channels], skips + y[:, self.channels :]
        return self.fc(F.relu(skips).mean(-1))


def test_an_attribute_of_several_widths_ties_them() -> None:
    space = check_laws(Gates(), torch.randn(2, 3, 12), sample=torch.randn(1, 3, 12), seeds=2)
    assert [(group.name, group.size) for group in space.groups] == [("stem", 8)]
    assert [str(width) for width in space.widths] == ["channels"]
    assert {r.layer for r in space.refused} == {"fc"}


class Scaled(nn.Module):
    """The attribute is no width of any layer: four times the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc, self.width = conv(3, 8), conv(8, 6), nn.Linear(6, 4), 8
        self.rows = 4

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.a(x)).view(-1, self.width, 8, 8))).mean((2, 3)))


def test_declared_attributes() -> None:
    space = check_laws(Scaled(), torch.randn(IMAGE), widths={"width": "a"})
    assert [str(width) for width in space.widths] == ["width"]
    with pytest.raises(ModelError, match="widths names 'breadth', which is no attribute"):
        dp.trace(Scaled(), torch.randn(IMAGE), widths={"breadth": "a"})
    with pytest.raises(ModelError, match="widths names 'aa', which is no layer"):
        dp.trace(Scaled(), torch.randn(IMAGE), widths={"width": "aa"})


# ------------------------------------------------------------------ parameters and buffers
class Embedded(nn.Module):
    """Position embeddings of tokens, and of images; a class token; a buffer of gains."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down, self.fc = conv(3, 8), nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 4)
        self.positions, self.token = nn.Parameter(torch.randn(1, 70, 8)), nn.Parameter(torch.randn(1, 1, 8))
        self.image = nn.Parameter(torch.randn(1, 8, 4, 4))
        self.register_buffer("gain", torch.rand(8, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) * self.gain + F.interpolate(self.image, size=(8, 8), mode="bicubic")
        tokens = torch.cat([self.token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
        tokens = tokens + self.positions[:, : tokens.shape[1]]
        return self.fc((tokens + self.down(F.relu(self.up(tokens))))[:, 0])


def test_position_embeddings_are_narrowed() -> None:
    space = check_laws(Embedded(), torch.randn(IMAGE))
    assert [group.name for group in space.groups] == ["stem", "up"]
    small = dp.slim(Embedded(), space, dp.Masks.random(space, keep=0.5))
    assert (small.positions.shape, small.image.shape, small.gain.shape) == ((1, 70, 4), (1, 4, 4, 4), (4, 1, 1))


def test_half_of_every_group() -> None:
    space = check_laws(Stack(Viewed), torch.randn(IMAGE))
    masks = dp.Masks.random(space, keep=0.5)
    assert space.half_flops == dp.flops(space, masks)
    shrinks, half = space.prunable_flops / space.flops, space.half_flops / space.flops
    assert f"{shrinks:.1%} can shrink, {half:.1%} stay with half of every group" in str(space)
