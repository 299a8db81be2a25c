"""Random masks, outputs of pruned networks, snapshots of a model, relative differences."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import deap_prune as dp
from deap_prune.structure.inputs import as_call, forward
from deap_prune.structure.tracing.proof import randomised
from tests.helpers.networks import LARGE, NETWORKS, Example


class Prepared(NamedTuple):
    """A network that was traced, with a randomised copy in float64 and random inputs for it."""

    model: nn.Module
    inputs: Any
    space: dp.PruningSpace
    random: nn.Module
    call: Any


@cache
def prepared(name: str) -> Prepared:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return prepare({**NETWORKS, **LARGE}[name]())


def prepare(example: Example, batch: int = 4) -> Prepared:
    call = torch.utils._pytree.tree_map(
        lambda x: torch.randn(batch, *x.shape[1:], dtype=torch.float64) if isinstance(x, Tensor) else x,
        as_call(example.inputs),
    )
    space = dp.trace(example.model, example.inputs)
    return Prepared(example.model, example.inputs, space, randomised(example.model, seed=5), call)


def draw_masks(space: dp.PruningSpace, seed: int) -> dp.Masks:
    """A random number of filters per group (equal in all blocks), at random places; some groups are left out."""
    rng = np.random.default_rng(seed)
    masks = {}
    for group in space.groups:
        width = group.size // group.blocks
        number = rng.integers(1, width + 1)
        rank = rng.random((group.blocks, width)).argsort(axis=1).argsort(axis=1)
        if rng.random() < 0.9:
            masks[group.name] = (rank < number).reshape(-1)
    return dp.Masks(masks)


def outputs_slim(model: nn.Module, space: dp.PruningSpace, masks: dp.Masks, call: Any) -> list[Tensor]:
    with torch.no_grad():
        return forward(dp.slim(model, space, masks), call)


def outputs_masked(model: nn.Module, space: dp.PruningSpace, masks: dp.Masks, call: Any) -> list[Tensor]:
    with torch.no_grad(), dp.masked(model, space, masks):
        return forward(model, call)


def gap(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest difference, relative to the outputs' scale."""
    assert [x.shape for x in a] == [x.shape for x in b]
    return max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(a, b, strict=True))


def snapshot(model: nn.Module) -> dict[str, Any]:
    """State that may not change: weights (values and storage), modes, flags, gradients, hooks, attributes."""
    return {
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "storage": {k: (id(p), p.data_ptr()) for k, p in model.named_parameters()},
        "modes": {k: m.training for k, m in model.named_modules()},
        "flags": {k: p.requires_grad for k, p in model.named_parameters()},
        "grads": {k: None if p.grad is None else (id(p.grad), p.grad.clone()) for k, p in model.named_parameters()},
        "hooks": {
            (k, name): dict(getattr(m, name))
            for k, m in model.named_modules()
            for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        },
        "attributes": {k: sorted(vars(m)) for k, m in model.named_modules()},
        "momenta": {k: getattr(m, "momentum", None) for k, m in model.named_modules()},
    }


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    now = snapshot(model)
    assert before.keys() == now.keys()
    for key in ("storage", "modes", "flags", "hooks", "attributes", "momenta"):
        assert now[key] == before[key], key
    for name, value in before["state"].items():
        assert torch.equal(now["state"][name], value), name
    for name, value in before["grads"].items():
        gradient = now["grads"][name]
        assert (gradient is None) == (value is None), name
        assert value is None or (gradient[0] == value[0] and torch.equal(gradient[1], value[1])), name
