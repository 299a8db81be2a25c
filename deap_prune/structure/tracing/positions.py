"""Positions among channels (argmax, the indices of max): once some are pruned, a position belongs to another filter."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

COUNTS = ("count_nonzero",)  # whole numbers that are no positions


class Positions:
    """Tensors of positions, with the labels of the channels that they point into; unused ones do no harm."""

    def __init__(self) -> None:
        self._labels: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def note(self, tensor: Tensor, labels: Tensor, reason: str) -> None:
        """Note a tensor of positions.

        Args:
            tensor: The positions.
            labels: Labels of the channels.
            reason: Why they stay dense if the positions are used.
        """
        self._labels[tensor] = (labels, reason)

    def used(self, tensors: Iterable[Tensor], freeze: Callable[[Tensor, str], None]) -> None:
        """Freeze the channels that the positions among these tensors point into."""
        for tensor in tensors:
            if tensor in self._labels:
                freeze(*self._labels[tensor])


def are_positions(result: Tensor, source: Tensor, operator: str) -> bool:
    """Whether a result of an operator that mixes channels holds their positions: whole numbers made of real ones."""
    return result.dtype in (torch.int64, torch.int32) and source.is_floating_point() and operator not in COUNTS
