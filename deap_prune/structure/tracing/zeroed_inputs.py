"""Pruned channels that layers ignore because their inputs are zero: as under a mask, without copies of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from deap_prune.structure.layers import Indices, spec_of
from deap_prune.structure.masks import Masks
from deap_prune.structure.space import PruningSpace

# Without subclasses: their forward may do more than a weighted sum of the inputs.
SUMS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@contextmanager
def zeroed_inputs(network: nn.Module, space: PruningSpace, masks: Masks) -> Iterator[PruningSpace]:
    """Zero the pruned channels that torch's convolutions and linear layers read.

    Args:
        network: The network.
        space: Its space.
        masks: Filters that stay.

    Yields:
        The space with the layers that are left to be masked.
    """
    kept, left, handles = space.kept(masks), [], []
    try:
        for entry in space.layers:
            pruned = np.flatnonzero(~kept[entry.inputs])
            layer = network.get_submodule(entry.name) if entry.dim is None else None
            if layer is None or type(layer) not in SUMS:
                left.append(entry)
            elif len(pruned):
                handles.append(layer.register_forward_pre_hook(_zeroing(layer, pruned), with_kwargs=True))
        yield replace(space, layers=tuple(left))
    finally:
        for handle in handles:
            handle.remove()


def _zeroing(layer: nn.Module, pruned: Indices) -> Callable[..., Any]:
    spec, index = spec_of(layer), torch.from_numpy(pruned)

    def zero(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = args[0] if args else kwargs["input"]
        x = x.index_fill(spec.axis(x.dim()), index.to(x.device), 0)
        return ((x, *args[1:]), kwargs) if args else ((), {**kwargs, "input": x})

    return zero
