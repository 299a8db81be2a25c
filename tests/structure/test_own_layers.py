"""What people bring on their first day: a working space, or an error that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.errors import ModelError
from deap_prune.structure.inputs import as_call, forward
from deap_prune.structure.tracing.proof import Proof, difference
from tests.helpers.networks import IMAGE, conv
from tests.helpers.pruning import assert_unchanged, snapshot


class Plain(nn.Module):
    """Two convolutions with a place between them."""

    def __init__(self, between: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.first, self.second, self.fc = conv(3, 8), conv(8, 12), nn.Linear(12, 5)
        self.between = between

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.second(self.between(F.relu(self.first(x)))))
        return self.fc(x.mean((2, 3)))


class Swish(torch.autograd.Function):
    """Element-wise, with a backward of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class HalfPrecise(Plain):
    """Its second convolution in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.second.half()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.second(F.relu(self.first(x)).half())).float().mean((2, 3)))


class Talkative(Plain):
    """Gives back more than tensors."""

    def forward(self, x: Tensor) -> Any:
        return {"logits": super().forward(x), "classes": 5, "note": "by a friend"}


class PlainList(Plain):
    """A layer in a list that nn.Module does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [conv(8, 8)]
        self.between = lambda x: self.hidden[0](x)


def frozen() -> nn.Module:
    return Plain().requires_grad_(False)


WORKS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "a dynamic if on values": (lambda: Plain(lambda x: 2 * x if x.max() > 0 else x), {"first", "second"}),
    "a dynamic if on the width": (lambda: Plain(lambda x: 2 * x if x.shape[1] > 6 else x), {"second"}),
    "a dynamic if on the image": (lambda: Plain(lambda x: 2 * x if x.shape[2] > 6 else x), {"first", "second"}),
    "a lambda": (lambda: Plain(lambda x: F.gelu(x) * 2), {"first", "second"}),
    "a custom autograd function": (lambda: Plain(Swish.apply), {"first", "second"}),
    "frozen": (frozen, {"first", "second"}),
    "half of it in half precision": (HalfPrecise, {"first", "second"}),
    "more than tensors as output": (Talkative, {"first", "second"}),
    "double precision": (lambda: Plain().double(), {"first", "second"}),
}


@pytest.mark.parametrize("case", WORKS)
def test_works(case: str) -> None:
    make, groups = WORKS[case]
    model = make().train()
    dtype = next(model.parameters()).dtype
    image, before = torch.randn(IMAGE, dtype=dtype), snapshot(model)
    space = dp.trace(model, image)
    assert_unchanged(model, before)
    assert {g.name for g in space.groups} == groups
    proof = Proof.of(model.eval(), as_call(image))
    masks = dp.Masks.random(space, keep=0.5, seed=0)
    assert difference(proof.model, space, masks, proof.call) <= proof.tolerance
    small = dp.slim(model, space, masks)
    assert dp.flops(space, masks) < space.flops
    assert forward(small, as_call(image))
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: p.requires_grad for name, p in small.named_parameters()} == flags


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "no channels": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5)),
        r"no filters that can be pruned.*needs a conv",
    ),
    "a lazy layer": (
        lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten()),
        r"'0.weight' belongs to a lazy layer without shapes.*run the",
    ),
    "another size of image": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(7, 5)),
        r"fails on the example inputs: Runt",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_says_what_to_do(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(ModelError, match=message):
        dp.trace(make(), torch.randn(IMAGE))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_a_script_module_is_named() -> None:
    with pytest.raises(ModelError, match=r"is a ScriptModule.*give the nn.Module"):
        dp.trace(torch.jit.script(nn.Sequential(conv(3, 4), conv(4, 5))), torch.randn(IMAGE))


def test_a_layer_in_a_list_stays_dense() -> None:
    """nn.Module does not see it, and torch.jit can't trace it; the rest is pruned and counted."""
    space = dp.trace(PlainList(), torch.randn(IMAGE))
    assert {r.layer: r.reason for r in space.refused}["first"] == "is read by 'convolution', which can't be narrowed"
    assert "second" in {group.name for group in space.groups}
