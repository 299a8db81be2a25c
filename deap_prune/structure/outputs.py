"""Open the outputs of a network: tensors inside tuples, mappings, dataclasses and plain objects."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

# Values without tensors inside.
_PLAIN = (str, bytes, bytearray, int, float, complex, type(None), range, slice, enum.Enum, np.generic, type)
_PLAIN_TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, torch.Generator)


@dataclass(frozen=True, eq=False)
class Outputs:
    """The contents of a network's outputs.

    Attributes:
        tensors: All tensors, in order; NumPy arrays as tensors.
        closed: Type names of the objects that can't be opened (generators, functions, extension types).
        arrays: Whether some tensors left as NumPy arrays.
    """

    tensors: list[Tensor]
    closed: tuple[str, ...]
    arrays: bool = False


def open_outputs(outputs: Any) -> Outputs:
    """The tensors of tuples, lists, sets, mappings, dataclasses and objects with attributes, in order."""
    tensors: list[Tensor] = []
    closed: list[str] = []
    arrays = False
    seen: set[int] = set()
    stack = [outputs]
    while stack:
        value = stack.pop()
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            arrays = True
            tensors.append(torch.from_numpy(np.array(value)))
        elif not isinstance(value, (*_PLAIN, *_PLAIN_TORCH)) and id(value) not in seen:
            seen.add(id(value))
            parts = _parts(value)
            if parts is None:
                closed.append(type(value).__name__)
            else:
                stack += reversed(list(parts))
    return Outputs(tensors, tuple(dict.fromkeys(closed)), arrays)


def _parts(value: Any) -> Iterable[Any] | None:
    """The values inside an object, or None if it can't be opened."""
    if isinstance(value, Mapping):
        return list(value.values()) + list(getattr(value, "__dict__", {}).values())
    if isinstance(value, (tuple, list, set, frozenset)):
        return list(value) + list(getattr(value, "__dict__", {}).values())
    leaves, _ = tree_flatten(value)  # types that are registered with torch's pytree
    if not (len(leaves) == 1 and leaves[0] is value):
        return leaves
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    if callable(value) or isinstance(value, Iterator):
        return None
    names = [name for kind in type(value).__mro__ for name in _slots(kind)]
    if not names and not hasattr(value, "__dict__"):
        return None
    return [getattr(value, name, None) for name in names] + list(getattr(value, "__dict__", {}).values())


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))
