"""Example inputs in any of the three shapes that networks take: a tensor, a tuple, a dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
Call = tuple[tuple[Any, ...], dict[str, Any]]


def as_call(inputs: Inputs) -> Call:
    """Positional and keyword arguments of a forward pass."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, (tuple, list)) else ((inputs,), {})


def first_sample(inputs: Inputs, device: torch.device) -> Call:
    """The call with the first sample of the batch alone, on a device."""
    return tree_map(
        lambda x: x[:1].to(device).contiguous() if isinstance(x, Tensor) and x.dim() else x, as_call(inputs)
    )


def forward(model: nn.Module, call: Call) -> list[Tensor]:
    """All output tensors of a forward pass, flattened out of tuples and dicts."""
    args, kwargs = call
    return [leaf for leaf in tree_leaves(model(*args, **kwargs)) if isinstance(leaf, Tensor)]
