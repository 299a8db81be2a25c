"""What the proof does to be quick has the results of the slow way."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.structure.tracing.depthwise import DepthwiseByTaps, by_taps, is_slow_depthwise
from deap_prune.structure.tracing.dispatch_count import dispatch_count
from deap_prune.structure.tracing.proof import Proof
from deap_prune.structure.tracing.randomised import randomised
from deap_prune.structure.tracing.zeroed_inputs import zeroed_inputs


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), [(3, 1, 1, 1), ((3, 5), 2, (2, 0), (1, 2))])
def test_depthwise_convolutions_by_taps(
    kernel: int | tuple[int, int], stride: int, padding: int | tuple[int, int], dilation: int, biased: bool
) -> None:
    layer = nn.Conv2d(6, 6, kernel, stride, padding, dilation, groups=6, bias=biased).double()
    x = torch.randn(2, 6, 11, 13, dtype=torch.float64)
    given = (x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    assert is_slow_depthwise(F.conv2d, given)
    torch.testing.assert_close(by_taps(given), F.conv2d(*given), rtol=1e-12, atol=1e-12)


class Separable(nn.Module):
    """Depthwise, pointwise, and a linear layer on tokens that is called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)
        self.grouped, self.point = nn.Conv2d(8, 8, 3, groups=2), nn.Conv1d(8, 6, 1)
        self.mixer, self.head = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.grouped(F.relu(self.depth(F.relu(self.stem(x))))))
        tokens = F.relu(self.point(x.flatten(2))).transpose(1, 2)
        return self.head(F.relu(self.mixer(input=tokens)).mean(1))


def test_zero_inputs_are_a_mask() -> None:
    space = dp.trace(Separable(), torch.randn(1, 3, 12, 12))
    random, x = randomised(Separable()), torch.randn(2, 3, 12, 12, dtype=torch.float64)
    for seed in range(3):
        masks = dp.Masks.random(space, keep=(0.3, 0.7), seed=seed)
        with torch.no_grad(), dp.masked(random, space, masks):
            expected = random(x)
        with torch.no_grad(), zeroed_inputs(random, space, masks) as left, DepthwiseByTaps():
            assert not any(entry.name in ("point", "mixer", "head", "grouped") for entry in left.layers)
            torch.testing.assert_close(random(x), expected, rtol=1e-12, atol=1e-12)
        assert not any(module._forward_pre_hooks for module in random.modules())


def test_a_proof_refuses_a_wrong_space() -> None:
    """A linear layer that reads a group at other positions than the space says."""
    model = Separable()
    space = dp.trace(model, torch.randn(1, 3, 12, 12))
    proof = Proof.of(model, ((torch.randn(1, 3, 12, 12),), {}))
    names = [group.name for group in space.groups]
    assert proof.failure(space, names) is None
    reader = next(entry for entry in space.layers if entry.name == "head")
    reader.inputs[:] = reader.inputs[::-1].copy()
    failure = proof.failure(space, names)
    assert failure is not None and "masked and slimmed outputs differ" in failure.reason


def test_depthwise_convolutions_by_taps_are_counted() -> None:
    x = torch.randn(1, 3, 12, 12)
    with torch.no_grad():
        expected = dispatch_count(Separable(), ((x,), {}))[0]
        assert dispatch_count(Separable().double(), ((x.double(),), {}))[0] == expected
    assert dp.trace(Separable(), x).flops == expected
