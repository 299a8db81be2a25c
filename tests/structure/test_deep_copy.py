"""Deep copies of networks."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from deap_prune.structure.deep_copy import deep_copy


class Linked(nn.Module):
    """A child that refers to its parent, a shared layer, containers, and a layer with rules of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.child = Child(self)
        self.shared = self.child.layer
        self.table: dict[str, Any] = {"layers": [self.first], "size": (2, 3)}
        self.hooked = nn.ReLU()
        self.hooked.register_forward_hook(lambda module, args, out: None)
        self.own = Own()

    def forward(self, x: Tensor) -> Tensor:
        return self.own(self.hooked(self.shared(self.first(x))))


class Child(nn.Module):
    def __init__(self, parent: nn.Module) -> None:
        super().__init__()
        self.parent, self.layer = [parent], nn.BatchNorm2d(4)


class Own(nn.Module):
    copies = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Own:
        Own.copies += 1
        return Own()

    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def test_a_copy_keeps_the_links_inside_the_network_and_shares_nothing() -> None:
    model = Linked().eval()
    twin = deep_copy(model)
    assert type(twin) is Linked and twin is not model and not twin.training
    assert twin.child.parent[0] is twin and twin.shared is twin.child.layer
    assert twin.table["layers"][0] is twin.first and twin.table["size"] == (2, 3)
    assert Own.copies == 1 and twin.own is not model.own and len(twin.hooked._forward_hooks) == 1
    ours, theirs = dict(twin.named_modules()), dict(model.named_modules())
    assert list(ours) == list(theirs) and not set(map(id, ours.values())) & set(map(id, theirs.values()))
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in model.parameters()}
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(twin(x), model(x))
    twin.first.register_forward_hook(lambda module, args, out: out * 0)
    assert not model.first._forward_hooks and torch.equal(copy.deepcopy(model)(x), model(x))


def test_objects_of_the_memo_are_not_copied() -> None:
    model = Linked()
    twin = deep_copy(model, {id(model.first): model.first, id(model.shared.weight): model.shared.weight})
    assert twin.first is model.first and twin.shared is not model.shared
    assert twin.shared.weight is model.shared.weight and twin.shared.bias is not model.shared.bias
