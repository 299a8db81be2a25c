"""Functions outside of the layers that mix channels, and sizes that count the channels of another tensor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import deap_prune as dp
from tests.helpers.networks import IMAGE, conv
from tests.structure.laws import check_laws

Operator = Callable[[Tensor], Tensor]


class Mixed(nn.Module):
    """An operator between two convolutions, beside a shortcut."""

    def __init__(self, operator: Callable[[Tensor], Tensor] | None = None, block: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.b, self.c, self.fc = conv(3, 8), conv(8, 8), conv(8, 6), nn.Linear(6, 4)
        self.operator = operator
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        y = self.b(x) if self.operator is None else self.operator(self.b(x))
        x = x + (y if self.block is None else self.block(y))
        return self.fc(F.relu(self.c(x)).mean((2, 3)))


class Norm2d(nn.Module):
    """A norm over channels that no name gives away, with its shape in an attribute."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain, self.shift, self.shape = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width)), (width,)

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.shape, self.gain, self.shift).permute(0, 3, 1, 2)
        return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6)


class SpatialGate(nn.Module):
    """CBAM: a map from the largest and the mean channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(torch.cat([x.max(1, keepdim=True)[0], x.mean(1, keepdim=True)], 1)).sigmoid()


class ChannelAttention(nn.Module):
    """ECA: a convolution that slides along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.conv(x.mean((2, 3))[:, None]).sigmoid()
        return x * weights.view(len(x), -1, 1, 1)


class Turned(nn.Module):
    """Triplet attention: a gate on the image, its convolution shared with one on (rows, channels, columns)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv(2, 1), nn.BatchNorm2d(1))

    def gate(self, x: Tensor) -> Tensor:
        return x * self.conv(torch.cat([x.max(1, keepdim=True)[0], x.mean(1, keepdim=True)], 1)).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x) + self.gate(x.transpose(1, 2)).transpose(1, 2)


class TokenMixer(nn.Module):
    """MLP-Mixer: linear layers over tokens, channel by channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.conv, self.back = nn.LayerNorm(width), nn.Linear(64, 10), nn.Linear(10, 64)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x.flatten(2).transpose(1, 2)).transpose(1, 2)
        return self.back(F.gelu(self.conv(tokens))).view_as(x)


class Attention(nn.Module):
    """Self-attention as in timm: one layer for queries, keys and values, sizes from the tokens."""

    def __init__(self, width: int, *, fused: bool) -> None:
        super().__init__()
        self.qkv, self.proj, self.num_heads, self.fused = nn.Linear(width, 3 * width), nn.Linear(width, width), 2, fused

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        n, length, width = tokens.shape
        parts = self.qkv(tokens).reshape(n, length, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v) if self.fused else (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(n, length, width)).transpose(1, 2).view_as(x)


class Heads(nn.Module):
    """Attention whose scale is that of the dense heads, so that only whole heads can go."""

    def __init__(self, width: int, *, fused: bool) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.heads, self.size, self.fused = 4, width // 4, fused

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        shape = (*tokens.shape[:2], self.heads, self.size)
        q, k, v = (layer(tokens).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, scale=self.size**-0.5)
        else:
            y = (q @ k.transpose(-2, -1) / self.size**0.5).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, x.shape[2:])


@pytest.mark.parametrize("fused", [False, True])
def test_whole_heads_are_pruned_where_their_size_is_fixed(fused: bool) -> None:
    """Each of four heads is a filter with as many positions as it has channels."""
    space = check_laws(Mixed(Heads(8, fused=fused)), torch.randn(IMAGE), seeds=2)
    assert {r.layer for r in space.refused} == {"fc"}
    heads = next(group for group in space.groups if any(m.layer.endswith("query") for m in group.layers("filter")))
    assert (heads.size, {m.layer.rpartition(".")[2] for m in heads.members}) == (4, {"query", "key", "value", "out"})


MIXING: dict[str, Operator] = {
    "mean": lambda x: x - x.mean(1, keepdim=True),
    "softmax": lambda x: x.softmax(1),
    "cumsum": lambda x: x.cumsum(1),
    "normalize": lambda x: F.normalize(x, dim=1),
    "similarity": lambda x: x * F.cosine_similarity(x, x.roll(1, 2), dim=1)[:, None],
    "norm over all": lambda x: F.group_norm(x, 1),
    "layer norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "max": lambda x: x - x.max(1, keepdim=True)[0],
    "branch": lambda x: 2 * x if float(x.mean()) > 0 else x,
}


@pytest.mark.parametrize("case", MIXING)
def test_what_mixes_channels_runs_on_the_kept_ones(case: str) -> None:
    space = check_laws(Mixed(MIXING[case]), torch.randn(IMAGE), seeds=2)
    assert [group.name for group in space.groups] == ["a", "c"]
    assert space.mixing


class Classifier(nn.Module):
    """Class weights of its own, drawn noise, a state that starts as zeros, a norm by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.gate, self.hidden = conv(3, 8), conv(8, 12), conv(18, 12), 6
        self.norm, self.weight = nn.GroupNorm(6, 6), nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        mean, scale = self.b(F.relu(self.a(x))).chunk(2, 1)
        y = torch.cat([mean, mean + torch.randn_like(mean) * 0 * scale], 1)
        state = x.new_zeros(len(x), self.hidden, *x.shape[2:])
        for _ in range(2):
            keep, new = self.gate(torch.cat([y, state], 1)).split(self.hidden, 1)
            state = self.norm(keep.sigmoid() * state + new.tanh())
        return state.mean((2, 3)) @ self.weight.t()


def test_class_weights_noise_and_states() -> None:
    space = check_laws(Classifier(), torch.randn(IMAGE), seeds=2)
    assert [group.name for group in space.groups] == ["a", "b", "gate"] and not space.refused


def volume(y: Tensor, z: Tensor) -> Tensor:
    """PSMNet: both features, one behind the other, written into zeros."""
    result = y.new_zeros(len(y), y.size(1) * 2, *y.shape[2:])
    result[:, : y.size(1)], result[:, y.size(1) :] = y, z
    return result[:, : y.size(1)] + result[:, y.size(1) :]


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "norm": lambda: Norm2d(8),
    "spatial gate": SpatialGate,
    "channel attention": ChannelAttention,
    "turned": Turned,
    "token mixer": lambda: TokenMixer(8),
    "attention": lambda: Attention(8, fused=False),
    "fused attention": lambda: Attention(8, fused=True),
}


@pytest.mark.parametrize("case", BLOCKS)
def test_blocks_that_mix_channels_are_pruned(case: str) -> None:
    space = check_laws(Mixed(block=BLOCKS[case]()), torch.randn(IMAGE), seeds=2)
    assert {r.layer for r in space.refused} <= {"fc", "block.conv", "block.conv.0", "block.back"}  # one filter, tokens
    assert space.half_flops < 0.5 * space.flops


def test_masks_hold_for_several_passes_and_parts_of_the_network() -> None:
    network, images = (
        nn.Sequential(conv(3, 8), SpatialGate(), SpatialGate(), conv(8, 4)).eval(),
        torch.randn(2, 3, 6, 6),
    )
    space = dp.trace(network, images)
    masks = dp.Masks.random(space, keep=0.5, seed=0)
    small = dp.slim(network, space, masks)
    with dp.masked(network, space, masks):
        for run in (network, network, lambda x: network[2:](network[:2](x))):
            torch.testing.assert_close(run(images), small(images))
        network(images).sum().backward()
    gradient = network[0].weight.grad
    assert gradient is not None and (gradient.flatten(1).abs().amax(1) > 0).tolist() == masks["0"].tolist()


class Sized(nn.Module):
    """Features ``y`` that get the size of ``z``, which a second head reads."""

    def __init__(self, operator: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.operator = conv(3, 8), conv(3, 8), operator
        self.left, self.right = conv(8, 4), conv(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, z = self.a(x), self.b(x)
        return self.left(self.operator(y, z)), self.right(z)


def tokens_and_back(y: Tensor, z: Tensor) -> Tensor:
    n, width, height, length = z.shape
    return y.flatten(2).transpose(1, 2).reshape(n, height, length, width).permute(0, 3, 1, 2)


def filled(y: Tensor, z: Tensor) -> Tensor:
    result = y.new_zeros(z.shape)
    result[:, : y.size(1)] = y
    return result


SIZED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "view": lambda y, z: y.flatten(1).view(z.shape),
    "view as": lambda y, z: y.flatten(2).view_as(z),
    "heads": lambda y, z: (y.flatten(2).view(len(y), 2, z.shape[1] // 2, -1) * 2).view(z.shape),
    "unflatten": lambda y, z: y.flatten(1).unflatten(1, z.shape[1:]),
    "expand": lambda y, z: y.mean((2, 3), keepdim=True).expand_as(z),
    "tokens": tokens_and_back,
    "slice": lambda y, z: y[:, : z.shape[1]],
    "split": lambda y, z: sum(torch.cat([y, z], 1).split(z.shape[1], 1)),
    "zeros": lambda y, z: y + torch.zeros(1, z.shape[1], 1, 1),
    "filled": filled,
    "volume": volume,
}


@pytest.mark.parametrize("case", SIZED)
def test_sizes_of_another_tensor_tie_its_channels(case: str) -> None:
    space = check_laws(Sized(SIZED[case]), torch.randn(IMAGE), seeds=2)
    assert [group.name for group in space.groups] == ["a"]
    assert {member.layer for member in space.groups[0].members} == {"a", "b", "left", "right"}


class Detections(nn.Module):
    """Features of as many points as there are, an embedding of places, regions of interest, a slice by an attribute."""

    def __init__(self, operator: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.score, self.fc, self.places = conv(3, 6), conv(6, 8), conv(8, 1, 1), nn.Linear(8, 4), 5
        self.table, self.operator = nn.Embedding(64, 8), operator

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.b(F.relu(self.a(x))))
        return self.fc(self.operator(self, x) + self.table(torch.zeros((), dtype=torch.long))), self.score(x)


def regions(network: nn.Module, x: Tensor) -> Tensor:
    boxes = torch.tensor([[0.0, 0, 0, 6, 6]], dtype=x.dtype)
    return torchvision.ops.roi_align(x, boxes, (2, 2)).mean((2, 3))


def emptied(network: nn.Module, x: Tensor) -> Tensor:
    y = x.clone()
    y[y < 0.1] = 0
    return y.mean((2, 3))


DETECTIONS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "points": lambda net, x: x.flatten(2)[0].t()[(net.score(x).flatten() > 0).nonzero()[:, 0]],
    "number": lambda net, x: x.mean((2, 3)) * (2 if float(net.score(x).mean()) > 0 else 3),
    "table": lambda net, x: (x.flatten(2).transpose(1, 2) + net.table(torch.arange(64))).mean(1),
    "regions": regions,
    "written where a mask is true": emptied,
    "shuffled": lambda net, x: F.channel_shuffle(x, 2).mean((2, 3)),
}


@pytest.mark.parametrize("case", DETECTIONS)
def test_values_that_are_read_positions_and_tables(case: str) -> None:
    space = check_laws(
        Detections(DETECTIONS[case]), torch.randn(IMAGE), seeds=2, count=case not in ("points", "number")
    )
    assert [group.name for group in space.groups] == ["a", "b"]
