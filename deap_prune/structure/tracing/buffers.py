"""Buffers of a forward pass: which memory the activations take, and from which step to which."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from deap_prune.structure.cost_polynomial import Activations

Labels = NDArray[np.int64]
DENSE_LABEL = np.zeros(1, dtype=np.int64)


@dataclass
class Buffer:
    """Memory that one or several tensors of a pass (views, in-place results) share.

    Attributes:
        size: Bytes.
        labels: Channel labels that the bytes are spread over evenly, shape (n,); label 0 is dense.
        first: Step that fills it first.
        last: Last step that uses it.
    """

    size: int
    labels: Labels
    first: int
    last: int


class Buffers:
    """Records the buffers that the steps of one pass read and write.

    Attributes:
        entries: In order of creation.
        writes: Buffer of each result of an operator between the layers.
    """

    def __init__(self) -> None:
        self.entries: list[Buffer] = []
        self.writes: list[int] = []
        self._numbers: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def record(
        self, step: int, inputs: Sequence[Tensor], outputs: Iterable[tuple[Tensor, Labels | None]], *, layer: bool
    ) -> None:
        """Record a step.

        Args:
            step: Its number.
            inputs: Tensors that it reads; parameters are not activations, and are left out.
            outputs: Tensors that it returns, each with its labels (None: dense).
            layer: Whether the step is a layer rather than an operator between the layers.
        """
        known = [(tensor, self._numbers[tensor]) for tensor in inputs if tensor in self._numbers]
        for _, number in known:
            self.entries[number].last = step
        for tensor, labels in outputs:
            shared = [number for source, number in known if _same_memory(source, tensor)]
            if shared:
                self._numbers[tensor] = shared[0]
                in_place = any(tensor is source for source, _ in known)
            elif any(_same_memory(source, tensor) for source in inputs):
                continue  # a view of a parameter
            else:
                self._numbers[tensor] = self._new(tensor, labels, step)
                in_place = True
            if in_place and not layer:
                self.writes.append(self._numbers[tensor])

    def start(self, tensors: Iterable[Tensor]) -> None:
        """Register the inputs of the network."""
        for tensor in tensors:
            self._numbers[tensor] = self._new(tensor, None, 0)

    def keep(self, tensors: Iterable[Tensor], step: int) -> None:
        """Keep buffers alive up to a step: those of the network's inputs and outputs."""
        for tensor in tensors:
            if tensor in self._numbers:
                self.entries[self._numbers[tensor]].last = step

    def _new(self, tensor: Tensor, labels: Labels | None, step: int) -> int:
        size = tensor.numel() * tensor.element_size()
        self.entries.append(Buffer(size, DENSE_LABEL if labels is None else labels, step, step))
        return len(self.entries) - 1

    def activations(self, ids_of: Labels, group_of: Labels, sizes: Sequence[int]) -> Activations:
        """The buffers as functions of the kept counts.

        Args:
            ids_of: Channel id of each label, shape (labels,).
            group_of: Group of each channel id, shape (channels + 1,), with -1 (dense) at the end.
            sizes: Channels of each group.
        """
        fixed = np.zeros(len(self.entries))
        slopes = np.zeros((len(self.entries), len(sizes)))
        for number, buffer in enumerate(self.entries):
            counts = np.bincount(group_of[ids_of[buffer.labels]] + 1, minlength=len(sizes) + 1)
            scale = buffer.size / max(1, len(buffer.labels))
            fixed[number] = counts[0] * scale
            slopes[number] = counts[1:] * scale / np.maximum(np.asarray(sizes), 1)
        spans = np.array([(buffer.first, buffer.last) for buffer in self.entries], dtype=np.int64).reshape(-1, 2)
        times = np.bincount(np.array(self.writes, dtype=np.int64), minlength=len(self.entries))
        return Activations(fixed, slopes, spans, times.astype(np.int64))


def _same_memory(a: Tensor, b: Tensor) -> bool:
    try:
        return a is b or a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() != 0
    except (NotImplementedError, RuntimeError):  # tensors without storage (sparse ones)
        return False
