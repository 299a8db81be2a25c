"""A watched pass: layers are single steps, and nothing is left behind, whatever goes wrong."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from deap_prune.structure.inputs import Call
from deap_prune.structure.tracing.layer_watch import LayerWatch


class Notes(LayerWatch):
    """What was called, and whether operators were seen that nobody should see."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.seen: list[str] = []

    def before_layer(self, name: str, layer: nn.Module, arguments: Call) -> None:
        torch.ones(3).sum()  # what a subclass computes is no step
        self.seen.append(f"before {name}")

    def after_layer(self, name: str, layer: nn.Module, arguments: Call, result: Any) -> None:
        torch.ones(3).sum()
        self.seen.append(f"after {name}" if isinstance(result, Tensor) else f"{name} failed")

    def after_operator(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        self.seen.append(func.overloadpacket.__name__)


class Body(nn.Module):
    """Two layers, and an addition between them."""

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


class Outer(nn.Conv2d):
    """A known layer with a known layer inside."""

    def __init__(self) -> None:
        super().__init__(3, 3, 1)
        self.inner = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.inner(x))


def test_what_is_inside_of_a_layer_is_not_seen() -> None:
    network = nn.Sequential(Outer(), nn.ReLU())
    watch = Notes(network)
    x = torch.ones(1, 3, 2, 2)
    with watch.watching():
        network(x)
        with Quiet():  # a mode of the network's own, around a layer
            network[0](x)
    assert watch.seen == ["before 0", "after 0", "relu", "before 0", "after 0"]


class Quiet(TorchDispatchMode):
    """A mode that does nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_a_failure_that_the_network_catches() -> None:
    network = Body()
    watch = Notes(network)
    with watch.watching():
        with suppress(RuntimeError):
            network.one(torch.ones(1, 7, 5, 5))
        network.two(network.one(torch.ones(1, 3, 5, 5)) * 2)
    steps = [s for s in watch.seen if s not in ("ones", "empty", "fill_")]
    assert steps[:2] == ["before one", "one failed"]
    assert steps[2:] == ["before one", "after one", "mul", "before two", "after two"]


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["before", "inside"])
def test_nothing_is_left_behind(where: str, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither hooks nor the mode, where a callback or a layer fails, or is interrupted."""
    network = Body()

    def fail(*_: Any) -> None:
        raise kind

    watch = Notes(network)
    monkeypatch.setattr(*((watch, "before_layer", fail) if where == "before" else (network.two, "forward", fail)))
    with pytest.raises(kind), watch.watching():
        network(torch.ones(1, 3, 5, 5))
    assert watch.inside == 0 and _get_current_dispatch_mode() is None
    monkeypatch.undo()
    before = list(watch.seen)
    network(torch.ones(1, 3, 5, 5) + 1)
    assert watch.seen == before
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in network.modules())
