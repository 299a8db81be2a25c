"""A watched pass: layers are single steps, and nothing is left behind, whatever goes wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deap_prune.structure.inputs import Call
from deap_prune.structure.watch import LayerWatch


class Notes(LayerWatch):
    """What was called, and whether operators were seen that nobody should see."""

    def __init__(self, network: nn.Module, fail: str = "") -> None:
        super().__init__(network)
        self.seen: list[str] = []
        self.fail = fail

    def before_layer(self, name: str, layer: nn.Module, arguments: Call) -> None:
        torch.ones(3).sum()  # what a subclass computes is no step
        self.seen.append(f"before {name}")
        if self.fail == name:
            raise ZeroDivisionError

    def after_layer(self, name: str, layer: nn.Module, arguments: Call, result: Any) -> None:
        torch.ones(3).sum()
        self.seen.append(f"after {name}" if isinstance(result, Tensor) else f"{name} failed")

    def after_operator(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        self.seen.append(func.overloadpacket.__name__)


class Body(nn.Module):
    """A known layer inside a known layer would be seen once; between the two stands an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x) + 1)


def test_layers_are_single_steps() -> None:
    network = Body()
    watch = Notes(network)
    with watch.watching():
        network(torch.ones(1, 3, 5, 5))
    steps = [s for s in watch.seen if s not in ("ones", "empty", "fill_")]  # of the input
    assert steps == ["before one", "after one", "add", "before two", "after two"]


@pytest.mark.parametrize("fail", ["before", "inside"])
def test_nothing_is_left_behind(fail: str) -> None:
    """Neither hooks nor the mode, where a callback or a layer fails."""
    network = Body()
    watch = Notes(network, fail="two" if fail == "before" else "")
    channels = 3 if fail == "before" else 7
    with pytest.raises((ZeroDivisionError, RuntimeError)), watch.watching():
        network(torch.ones(1, channels, 5, 5))
    assert watch.seen[-1] == ("two failed" if fail == "before" else "one failed") and watch.inside == 0
    before = list(watch.seen)
    network(torch.ones(1, 3, 5, 5) + 1)
    assert watch.seen == before
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in network.modules())
