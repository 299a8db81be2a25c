"""Hooks: what only watches does no harm, what computes is refused; the user's network runs once, and comes back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.errors import ModelError
from tests.helpers.networks import IMAGE, conv_bn
from tests.helpers.pruning import assert_unchanged, snapshot


class Skip(nn.Module):
    """A skip connection that a hook collects, as some U-Nets do."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.fc, self.kept = conv_bn(3, 8), conv_bn(8, 8), nn.Linear(8, 5), dict[str, Tensor]()
        self.down.register_forward_hook(lambda layer, args, out: self.kept.__setitem__("skip", out))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((self.up(self.down(x)) + self.kept.pop("skip")).mean((2, 3)))


def plain() -> nn.Sequential:
    return nn.Sequential(
        conv_bn(3, 8), nn.ReLU(), conv_bn(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )


def test_what_only_watches() -> None:
    model, seen = plain(), []
    for layer in model:
        layer.register_forward_hook(lambda layer, args, out: seen.append(out.shape))
    before = snapshot(model)
    space = dp.trace(model, torch.randn(IMAGE))
    assert_unchanged(model, before)
    assert len(seen) == len(model) and str(space) == str(dp.trace(plain(), torch.randn(IMAGE)))
    assert all(layer._forward_hooks for layer in model)


def test_what_computes() -> None:
    def scaled(layer: nn.Module, args: Any) -> Any:
        return (args[0] / 255,)

    def doubled(layer: nn.Module, args: Any, out: Tensor) -> Tensor:
        return 2 * out

    before, after = plain(), plain()
    before.register_forward_pre_hook(scaled)
    after[2].register_forward_hook(doubled)
    for model, where in ((before, "on the network"), (after, "on 2")):
        with pytest.raises(ModelError, match=rf"forward hooks \({where}\) change the network's outputs.*move"):
            dp.trace(model, torch.randn(IMAGE))
    with pytest.raises(ModelError, match=r"without its forward hooks \(on down\) the network fails: KeyError: 'skip'"):
        dp.trace(Skip(), torch.randn(IMAGE))


def test_a_kept_activation_is_named() -> None:
    model = plain()
    model.features = model(torch.randn(2, 3, 8, 8))
    with pytest.raises(ModelError, match="can't be copied: 'features' is part of an autograd graph; detach it"):
        dp.trace(model, torch.randn(IMAGE))


def test_a_compiled_part_is_named() -> None:
    model = plain()
    model[0] = torch.compile(model[0])
    with pytest.raises(ModelError, match=r"'0' is compiled; give the network before torch.compile"):
        dp.trace(model, torch.randn(IMAGE))
