"""Sizes that count channels: a view by the shape of another tensor ties the channels of both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deap_prune.structure.tracing.dataflow import Dataflow

Labels = NDArray[np.int64]
_NAMES = "view reshape expand broadcast_to unflatten zeros ones full empty new_zeros new_ones new_full new_empty"
_BY_SIZES = frozenset(_NAMES.split())
_LIKE_ANOTHER = frozenset(["view_as", "expand_as", "reshape_as"])


class Tracer(Protocol):
    """The labels of tensors; see ``LabelTracer``."""

    flow: Dataflow

    def of(self, tensor: Tensor) -> Tensor | None: ...  # noqa: D102
    def attach(self, tensor: Any, labels: Tensor) -> None: ...  # noqa: D102
    def tie(self, a: Tensor, b: Tensor, reason: str) -> None: ...  # noqa: D102
    def is_constant(self, tensor: Tensor) -> bool: ...  # noqa: D102


class Width(int):
    """A number of channels, in code an integer like any other; halves and sums of it are widths too.

    Attributes:
        rows: Labels of the channels, shape (rows, width); each row is as long as the width.
        tracer: The tracer of the labels.
        source: The tensor with these channels.
        ordered: Whether the channels are in the order of the rows; in a multiple of a width it is unknown.
    """

    rows: Labels
    tracer: object
    source: Tensor
    ordered: bool

    @classmethod
    def of(cls, rows: Labels, tracer: object, source: Tensor, *, ordered: bool = True) -> Width:
        """The width of rows of labels, shape (rows, width)."""
        width = cls(rows.shape[1])
        width.rows, width.tracer, width.source, width.ordered = rows, tracer, source, ordered
        return width

    def __floordiv__(self, other: Any) -> Any:
        if isinstance(other, int) and other > 0 and int(self) % other == 0 and self.ordered:
            return Width.of(self.rows.reshape(-1, int(self) // other), self.tracer, self.source)
        return int(self) // other

    def __add__(self, other: Any) -> Any:
        if isinstance(other, Width) and len(self.rows) == len(other.rows):
            return Width.of(np.concatenate([self.rows, other.rows], axis=1), self.tracer, self.source)
        return int(self) + other

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, int) and not isinstance(other, Width) and other > 0:
            return Width.of(np.tile(self.rows, other), self.tracer, self.source, ordered=False)
        return int(self) * other

    __rmul__ = __mul__

    def __reduce__(self) -> Any:
        return int, (int(self),)  # a copy is a plain integer


def with_widths(tracer: Tracer, tensor: Tensor, shape: Any) -> Any:
    """The shape of a tensor with its number of channels as a :class:`Width`."""
    labels = tracer.of(tensor)
    if not isinstance(shape, torch.Size) or labels is None:
        return shape
    rows, alone = labels.reshape(1, -1).numpy(), labels.numel()
    sizes = zip(labels.shape, shape, strict=True)
    return torch.Size([Width.of(rows, tracer, tensor) if n == size == alone > 1 else size for n, size in sizes])


def follow_widths(tracer: Tracer, name: str, args: Any, kwargs: Any, result: Any) -> None:
    """Tie the channels of a result to those that its sizes count.

    Args:
        tracer: Has the labels of the tensors.
        name: Name of the torch function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        result: What it returned.
    """
    if name == "__getitem__":
        for dim, end in _ends(args[1], args[0].dim()):
            _tie(tracer, result, dim, end)
    elif name in ("split", "split_with_sizes"):
        sizes, dim = _argument(args, kwargs, 1), _argument(args, kwargs, 2, "dim") or 0
        for number, part in enumerate(result):
            _tie(tracer, part, dim % part.dim(), sizes[number] if isinstance(sizes, Sequence) else sizes)
    elif name in _LIKE_ANOTHER:
        for dim, size in enumerate(with_widths(tracer, args[1], args[1].shape)):
            _tie(tracer, result, dim, size)
    elif name in _BY_SIZES and isinstance(result, Tensor):
        sizes = list(_integers((args, tuple(kwargs.values()))))
        first = 0
        if name == "unflatten":
            first, sizes = sizes[0] % args[0].dim(), sizes[1:]
        for dim, size in enumerate(sizes[: result.dim() - first]):
            _tie(tracer, result, first + dim, size)


def _integers(values: Iterable[Any]) -> Iterator[int]:
    """The integers in nested sequences, in order."""
    for value in values:
        if isinstance(value, int) and not isinstance(value, bool):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _integers(value)


def _argument(args: Any, kwargs: Any, place: int, name: str = "") -> Any:
    return args[place] if len(args) > place else kwargs.get(name) if name else next(iter(kwargs.values()), None)


def _ends(index: Any, dims: int) -> Iterator[tuple[int, Any]]:
    """Dimensions of the result that a slice cuts from the start, and where it ends."""
    entries = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(entry, (Tensor, list)) for entry in entries):
        return
    taken = sum(entry is not None and entry is not Ellipsis for entry in entries)
    place = 0
    for entry in entries:
        if isinstance(entry, slice) and not entry.start and entry.step in (None, 1):
            yield place, entry.stop
        place += dims - taken if entry is Ellipsis else not isinstance(entry, int)


def _tie(tracer: Tracer, tensor: Any, dim: int, width: Any) -> None:
    """Tie the channels along a dimension of a tensor to those that a width counts."""
    if not isinstance(width, Width) or width.tracer is not tracer or tensor.shape[dim] != width:
        return
    tracer.flow.depend(tensor, width.source)
    labels, rows = tracer.of(tensor), torch.from_numpy(width.rows)
    shape = [1] * tensor.dim()
    shape[dim] = int(width)
    if labels is None and tracer.is_constant(tensor):
        tracer.attach(tensor, rows[0].view(shape))
    elif labels is not None and labels.shape[dim] > 1 and width.ordered:
        for row in rows:
            tracer.tie(labels, row.view(shape), "has the width of channels that stay dense")
