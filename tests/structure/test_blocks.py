"""GroupNorm and grouped convolutions whose blocks are filled by several layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.networks import IMAGE, conv
from tests.structure.laws import check_laws


class Joined(nn.Module):
    """A skip connection that is concatenated, normalised in blocks and convolved, as in diffusion U-Nets."""

    def __init__(self, first: int, second: int, blocks: int, kind: str) -> None:
        super().__init__()
        width = first + second
        self.a, self.b, self.out, self.fc = conv(3, first), conv(first, second), conv(width, 6), nn.Linear(6, 4)
        self.blocks = nn.GroupNorm(blocks, width) if kind == "norm" else conv(width, width, groups=blocks)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.a(x))
        both = torch.cat([first, F.relu(self.b(first))], 1)
        return self.fc(F.relu(self.out(self.blocks(both))).mean((2, 3)))


@pytest.mark.parametrize("kind", ["norm", "convolution"])
@pytest.mark.parametrize(
    ("first", "second", "blocks", "period", "own_blocks"),
    [
        (8, 8, 4, 8, 2),  # two blocks in each part
        (16, 8, 6, 8, 2),  # parts of different width
        (8, 8, 2, 8, 1),  # one block in each part
        (8, 16, 2, 4, 1),  # a block of 12 spans both parts
    ],
)
def test_parts_are_tied_in_periods(
    first: int, second: int, blocks: int, period: int, own_blocks: int, kind: str
) -> None:
    space = check_laws(Joined(first, second, blocks, kind), torch.randn(IMAGE), seeds=2)
    group = space.group("a")
    assert (group.size, group.blocks) == (period, own_blocks)
    made = {m.layer: m.positions for m in group.layers("filter") if m.layer in ("a", "b")}
    assert made["a"].shape == (period, first // period) and made["b"].shape == (period, second // period)
    assert {r.layer for r in space.refused} == {"fc"}


def test_one_block_leaves_the_parts_free() -> None:
    space = check_laws(Joined(8, 8, 1, "norm"), torch.randn(IMAGE), seeds=2)
    assert [group.name for group in space.groups] == ["a", "b", "out"]


def test_periods_that_are_too_short_stay_dense() -> None:
    space = check_laws(Joined(6, 10, 4, "norm"), torch.randn(IMAGE), seeds=2)
    assert [group.name for group in space.groups] == ["out"]
    assert {r.reason for r in space.refused if r.layer != "fc"} == {
        "fills the blocks of 'blocks' together with other channels"
    }
