"""Moments of the test networks, as the tests of compensation collect them."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from deap_prune.reconstruction import Grams, collect_grams
from deap_prune.structure.inputs import forward
from tests.helpers.pruning import prepared

EVERY = 1e9  # rows for each feature: all positions
PADDED = ("resnet20_a", "polyphase_a")  # stages that shortcuts without weights join


def outputs_of(model: nn.Module, batch: object) -> tuple[list[Tensor], None]:
    return forward(model, batch), None


def grams_of(name: str, **options: object) -> Grams:
    _, _, space, random, call = prepared(name)
    options = {"mode": "full", "rows": EVERY, **options}
    return collect_grams(random, space, [call] * 9, forward=outputs_of, **options)  # type: ignore[arg-type]


@cache
def few_rows(name: str, mode: str) -> Grams:
    _, _, space, random, call = prepared(name)
    return collect_grams(random, space, [call], forward=outputs_of, mode=mode, rows=2)  # type: ignore[arg-type]


def read_by(model: nn.Module, layer: str, call: object) -> tuple[Tensor, Tensor]:
    """The input and the output of a layer in a forward pass."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        forward(model, call)
    handle.remove()
    return seen[0]
