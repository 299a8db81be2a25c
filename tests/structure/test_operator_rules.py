"""Operators that treat each channel separately, tie branches, or cut channels into equal parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

import deap_prune as dp
from deap_prune.structure.tracing.operator_rules import RULES
from tests.helpers.networks import IMAGE, conv
from tests.structure.laws import check_laws


class Between(nn.Module):
    """``operator`` works on the features of one convolution; another reads its result."""

    def __init__(self, operator: Callable[[Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        self.a, self.b, self.c, self.operator = conv(3, 8), conv(8, 8), conv(width, 6), operator
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(x))))
        return self.fc(F.relu(self.c(self.operator(x))).mean((2, 3)))


def grid(x: Tensor) -> Tensor:
    angle = torch.tensor([[0.9, 0.2, 0.1], [-0.2, 0.9, 0.0]], dtype=x.dtype)
    return F.affine_grid(angle.expand(len(x), 2, 3), [len(x), 1, 6, 6], align_corners=False)


def first_row(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :, 0] = 0
    return y


def pooled(x: Tensor) -> Tensor:
    small, places = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(small, places, 2)


def patches(x: Tensor) -> Tensor:
    return F.unfold(x, 3, padding=1).view(len(x), -1, 9, *x.shape[2:]).amax(2)


def context(x: Tensor) -> Tensor:
    """GlobalContext: attention over space, values keep their channels."""
    weights = torch.linspace(0, 1, 64, dtype=x.dtype).softmax(0).view(1, 64, 1).expand(len(x), -1, -1)
    return x + torch.bmm(x.flatten(2), weights).unsqueeze(-1)


def lowpass(x: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(x) * 0.5, s=x.shape[-2:])


def complex_parts(x: Tensor) -> Tensor:
    return torch.view_as_real(torch.fft.fft2(x)).sum(-1)


def blurred(x: Tensor) -> Tensor:
    return F.conv2d(x, torch.full((x.shape[1], 1, 3, 3), 1 / 9, dtype=x.dtype), padding=1, groups=x.shape[1])


def scattered(x: Tensor) -> Tensor:
    places = torch.arange(64).flip(0).expand(len(x), x.shape[1], 64)
    return torch.zeros_like(x).flatten(2).scatter(2, places, x.flatten(2)).view(x.shape)


def folded_blur(x: Tensor) -> Tensor:
    """One kernel for all channels, which are folded into the batch (StyleGAN's filters)."""
    kernel = torch.full((1, 1, 3, 3), 1 / 9, dtype=x.dtype)
    return F.conv2d(x.flatten(0, 1).unsqueeze(1), kernel, padding=1).view(x.shape)


CHANNELWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "grid_sample": lambda x: F.grid_sample(x, grid(x), align_corners=False),
    "unfold": patches,
    "unfold and fold": lambda x: F.fold(F.unfold(x, 2, stride=2), (8, 8), 2, stride=2),
    "sliding windows": lambda x: x.unfold(2, 3, 1).unfold(3, 3, 1).mean((-1, -2)),
    "instance_norm": lambda x: F.instance_norm(x),
    "layer_norm over space": lambda x: F.layer_norm(x, x.shape[2:]),
    "circular pad": lambda x: F.pad(x, (1, 2, 0, 1), mode="circular"),
    "reflection pad": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "fourier filter": lowpass,
    "complex parts": complex_parts,
    "sort": lambda x: x.flatten(2).sort(-1)[0].unflatten(2, (8, 8)),
    "topk": lambda x: x.flatten(2).topk(16)[0].unflatten(2, (4, 4)),
    "median": lambda x: x.median(3, keepdim=True)[0],
    "gather by sorted positions": lambda x: x.flatten(2).gather(2, x.flatten(2).argsort(2)).unflatten(2, (8, 8)),
    "gather": lambda x: x.gather(3, torch.zeros(*x.shape[:3], 2, dtype=torch.long)),
    "rot90": lambda x: torch.rot90(x, 1, (2, 3)),
    "new_zeros": lambda x: x + x.new_zeros(1, x.shape[1], 1, 1),
    "zeros": lambda x: torch.cat([x, torch.zeros(len(x), x.shape[1], 1, 8, dtype=x.dtype)], 2),
    "new_ones": lambda x: x * x.new_ones(1, x.shape[1], 8, 8),
    "randn_like": lambda x: x + 0 * torch.randn_like(x),
    "fill_": first_row,
    "interpolate by area": lambda x: F.interpolate(x, size=(4, 4), mode="area"),
    "interpolate, antialiased": lambda x: F.interpolate(x, size=(4, 4), mode="bicubic", antialias=True),
    "matmul over space": lambda x: x @ torch.linspace(0, 1, 64, dtype=x.dtype).view(8, 8),
    "batched matmul": context,
    "max_unpool2d": pooled,
    "indexed columns": lambda x: x[..., torch.tensor([3, 1, 2])],
    "indexed pixels": lambda x: x[:, :, torch.tensor([0, 1]), torch.tensor([2, 3])].unsqueeze(-1),
    "a blur": blurred,
    "lp_pool2d": lambda x: F.lp_pool2d(x + 0.1, 2, 2),
    "cummax": lambda x: x.cummax(2)[0],
    "kthvalue": lambda x: x - x.flatten(2).kthvalue(3, keepdim=True)[0].unsqueeze(-1),
    "take_along_dim": lambda x: torch.take_along_dim(x, x.argsort(-1), -1),
    "scatter": scattered,
    "index_add": lambda x: torch.zeros_like(x).index_add(2, torch.arange(7, -1, -1), x),
    "tril": lambda x: x.tril() + x.triu(1),
    "bucketize": lambda x: x * torch.bucketize(x, torch.tensor([0.1, 0.5], dtype=x.dtype)),
    "complex": lambda x: torch.view_as_real(torch.complex(x, x.relu()) * 1j).sum(-1),
    "a blur of folded channels": folded_blur,
    "masked_fill": lambda x: x.masked_fill(x < 0.2, 0.0),
}


@pytest.mark.parametrize("case", CHANNELWISE)
def test_channels_are_followed(case: str) -> None:
    counted = case != "max_unpool2d"  # torch.jit can't trace it
    space = check_laws(Between(CHANNELWISE[case]), torch.randn(IMAGE), seeds=2, count=counted)
    assert [group.name for group in space.groups] == ["a", "b", "c"]


# Tied: half of the filters of 'b' follow the other half.
HALVED: dict[str, Callable[[Tensor], Tensor]] = {
    "glu": lambda x: F.glu(x, 1),
    "slices by half": lambda x: x[:, : x.shape[1] // 2] * x[:, x.shape[1] // 2 :].sigmoid(),
    "narrow": lambda x: x.narrow(1, 0, x.shape[1] // 2) + x.narrow(1, x.shape[1] // 2, x.shape[1] // 2),
    "negative slices": lambda x: x[:, : -(x.shape[1] // 2)] * x[:, -(x.shape[1] // 2) :],
    "every other channel": lambda x: x[:, ::2] * x[:, 1::2],
    "maxout": lambda x: x.view(len(x), 2, -1, *x.shape[2:]).amax(1),
    "maxout of neighbours": lambda x: x.view(len(x), -1, 2, *x.shape[2:]).amax(2),
}


@pytest.mark.parametrize("case", HALVED)
def test_parts_are_tied(case: str) -> None:
    space = check_laws(Between(HALVED[case], width=4), torch.randn(IMAGE), seeds=2)
    assert space.group("b").size == 4
    assert space.group("b").layers("filter")[0].positions.shape == (4, 2)


class Branches(nn.Module):
    """Branches that are stacked and combined."""

    def __init__(self, combine: Callable[[Tensor], Tensor], dim: int) -> None:
        super().__init__()
        self.stem, self.left, self.right, self.dim = conv(3, 6), conv(6, 8), conv(6, 8, 5), dim
        self.combine, self.out, self.fc = combine, conv(8, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        stacked = torch.stack([self.left(x), self.right(x)], self.dim)
        return self.fc(F.relu(self.out(self.combine(stacked))).mean((2, 3)))


def selected(x: Tensor) -> Tensor:
    """SKNet: a softmax over branches."""
    weights = x.mean((3, 4), keepdim=True).softmax(1)
    return (x * weights).sum(1)


COMBINED: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "sum over the first dimension": (lambda x: x.sum(0), 0),
    "maximum": (lambda x: x.max(1)[0], 1),
    "mean over the last dimension": (lambda x: x.mean(-1), -1),
    "median": (lambda x: x.median(1)[0], 1),
    "selective kernels": (selected, 1),
    "norm": (lambda x: x.norm(dim=1), 1),
    "logsumexp": (lambda x: x.logsumexp(1), 1),
    "prod": (lambda x: x.prod(2), 2),
}


@pytest.mark.parametrize("case", COMBINED)
def test_branches_are_tied(case: str) -> None:
    combine, dim = COMBINED[case]
    space = check_laws(Branches(combine, dim), torch.randn(IMAGE), seeds=2)
    assert [m.layer for m in space.group("left").layers("filter")] == ["left", "right"]
    assert not [r for r in space.refused if r.layer != "fc"]


def test_stacked_branches_have_equal_widths() -> None:
    """They are tied where they are stacked, also if they become channels again."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.branches = conv(3, 6), nn.ModuleList(conv(6, 8) for _ in range(3))
            self.out, self.fc = conv(24, 5), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            return self.fc(F.relu(self.out(torch.stack([b(x) for b in self.branches], 1).flatten(1, 2))).mean((2, 3)))

    space = check_laws(Net(), torch.randn(IMAGE), seeds=2)
    assert [m.layer for m in space.group("branches.0").layers("filter")] == [f"branches.{i}" for i in range(3)]
    assert {r.layer for r in space.refused} == {"fc"}


def test_deformable_convolutions_keep_their_offsets() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.offsets, self.fc = conv(3, 8), conv(8, 18), nn.Linear(6, 4)
            self.deform = DeformConv2d(8, 6, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.a(x))
            return self.fc(F.relu(self.deform(x, self.offsets(x))).mean((2, 3)))

    space = check_laws(Net(), torch.randn(IMAGE), seeds=2)  # fvcore counts a deformable convolution as 0
    assert [group.name for group in space.groups] == ["a", "deform"]
    assert {r.layer for r in space.refused} == {"offsets", "fc"}


# ------------------------------------------------------------------ messages
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_are_named(kind: type[nn.RNNBase]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.rnn, self.fc = nn.Conv1d(3, 8, 3), nn.Conv1d(8, 6, 3), kind(6, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.rnn(self.b(F.relu(self.a(x))).permute(2, 0, 1))[0][-1])

    space = dp.trace(Net(), torch.randn(1, 3, 12))
    assert [group.name for group in space.groups] == ["a"]
    reason = next(r.reason for r in space.refused if r.layer == "b")
    assert reason.endswith(f"(in 'rnn', {kind.__name__}: inputs of recurrent layers stay dense)")


def test_a_rule_that_fails_refuses_its_channels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(step: object) -> None:
        raise RuntimeError("an overload that the rule does not know")

    monkeypatch.setitem(RULES, torch.ops.aten.cummax, broken)
    monkeypatch.setitem(RULES, torch.ops.aten._cummax_helper, broken)
    space = dp.trace(Between(lambda x: x.cummax(2)[0]), torch.randn(IMAGE))
    assert [group.name for group in space.groups] == ["a", "c"]
    assert any("which can't be narrowed" in r.reason for r in space.refused if r.layer == "b")


def test_the_cause_of_a_fixed_width_is_named() -> None:
    space = dp.trace(Between(lambda x: x + torch.cdist(x.flatten(2), x.flatten(2))[:, :, :1, None]), torch.randn(IMAGE))
    assert "b" not in [group.name for group in space.groups]
