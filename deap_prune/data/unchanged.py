"""Calls of the user's functions that must leave their arguments as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from deap_prune.errors import DataError


def unchanged(function: Callable[..., Any], *args: Any, name: str) -> Any:
    """The function's result for copies of the arguments' tensors; data that is used again is never its own to change.

    Args:
        function: The function.
        *args: Its arguments: tensors, nested ones too, networks and others.
        name: What it is called in the message.

    Raises:
        DataError: If it changes a tensor, a list or dict of tensors, or a network's parameters or mode.
    """
    copies = copied(args)
    networks = [arg for arg in args if isinstance(arg, nn.Module)]
    before = [_state(network) for network in networks]
    result = function(*copies)
    tensors, after = tree_leaves(args), tree_leaves(copies)
    if len(tensors) != len(after) or not all(map(_same, tensors, after)):
        raise DataError(
            f"{name} changes its arguments in place, which are used again; compute new tensors (x = x / 2 for x /= 2, "
            "x.clone(), nn.ReLU() for nn.ReLU(inplace=True) as first layer)"
        )
    if [_state(network) for network in networks] != before:
        raise DataError(f"{name} changes the network's parameters or mode (train, eval); leave them as they are")
    return result


def copied(values: Any) -> Any:
    """Nested values with copies of their tensors."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, values)


def _state(network: nn.Module) -> tuple[list[Any], list[bool]]:
    """Versions of the parameters, and the modes of the modules."""
    return [_version(p) for p in network.parameters()], [module.training for module in network.modules()]


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _same(one: Any, other: Any) -> bool:
    """Whether two leaves hold the same values; NaN equals NaN."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return True
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    try:
        with torch.no_grad():
            return bool(((one == other) | (one != one)).all())
    except (RuntimeError, NotImplementedError):  # tensors without such comparisons
        return True
