"""Outputs in objects: opened where that is possible, else the channels in them stay dense."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.structure.outputs import open_outputs
from tests.helpers.networks import IMAGE, conv
from tests.helpers.pruning import draw_masks
from tests.structure.laws import check_laws


@dataclass
class Record:
    logits: Tensor
    maps: Any = None


class Plain:
    def __init__(self, logits: Tensor, maps: Any = None) -> None:
        self.logits, self.maps = logits, maps


class Slotted:
    __slots__ = ("logits", "maps")

    def __init__(self, logits: Tensor, maps: Any = None) -> None:
        self.logits, self.maps = logits, maps


class Named(NamedTuple):
    logits: Tensor
    maps: Any = None


class Result(OrderedDict[str, Any]):
    """As the outputs of transformers: a mapping with attributes."""


class Extra(dict[str, Any]):
    def __init__(self, logits: Tensor, maps: Any = None) -> None:
        super().__init__(logits=logits)
        self.hidden = maps


class Net(nn.Module):
    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.fc, self.wrap = conv(3, 6), conv(6, 8), conv(8, 7), nn.Linear(7, 4), wrap

    def forward(self, x: Tensor) -> Any:
        maps = F.relu(self.b(F.relu(self.a(x))))
        return self.wrap(self.fc(F.relu(self.c(maps)).mean((2, 3))), maps)


OPENED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a dataclass": Record,
    "beside a tensor": lambda y, maps: (y, Record(y, maps)),
    "an object": Plain,
    "slots": Slotted,
    "a named tuple": Named,
    "a namespace": lambda y, maps: SimpleNamespace(y=y, more=[maps]),
    "a subclass of dict": lambda y, maps: Result(logits=y, maps=maps),
    "an attribute of a dict": Extra,
    "nested": lambda y, maps: {"out": [Record(y, Plain(y, {"maps": (maps,)}))]},
    "a set": lambda y, maps: (y, {maps}),
    "an object that holds itself": lambda y, maps: _cyclic(Plain(y, maps)),
}
CLOSED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a function": lambda y, maps: (y, lambda: maps),
    "partial": lambda y, maps: (y, partial(torch.add, maps)),
    "an iterator": lambda y, maps: (y, iter([maps])),
    "an array": lambda y, maps: (y, maps.numpy()),
}


def _cyclic(plain: Plain) -> Plain:
    plain.itself = plain
    return plain


@pytest.mark.parametrize("case", OPENED)
def test_tensors_in_objects_are_outputs(case: str) -> None:
    space = check_laws(Net(OPENED[case]), torch.randn(IMAGE))
    assert [group.name for group in space.groups] == ["a", "c"]
    assert {r.layer: r.reason for r in space.refused} == dict.fromkeys(("b", "fc"), "is an output of the network")


@pytest.mark.parametrize("case", OPENED)
def test_only_the_logits(case: str) -> None:
    space = check_laws(Net(lambda y, maps: OPENED[case](y, 2 * y)), torch.randn(IMAGE))
    assert [group.name for group in space.groups] == ["a", "b", "c"]


@pytest.mark.parametrize("case", CLOSED)
def test_closed_objects_keep_their_channels_dense(case: str) -> None:
    model, x = Net(CLOSED[case]), torch.randn(IMAGE)
    with torch.no_grad():
        space = dp.trace(model, x)
        small = dp.slim(model, space, draw_masks(space, 1))
        small(x)
    assert [group.name for group in space.groups] == ["a", "c"]
    reason = next(r.reason for r in space.refused if r.layer == "b")
    assert reason == "is an output of the network" or "can't be opened" in reason


def test_what_is_opened() -> None:
    one, two = torch.ones(1), torch.ones(2)
    assert [len(t) for t in open_outputs((one, {"a": Record(two, "text"), "b": None, "c": 3})).tensors] == [1, 2]
    assert open_outputs((one, iter([two]))).closed == ("list_iterator",)
    assert not open_outputs({"size": torch.Size([1]), "dtype": torch.float32, "kind": int}).closed
