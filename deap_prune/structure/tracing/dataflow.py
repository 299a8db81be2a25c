"""Dataflow of a forward pass: which steps contribute to the outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


class Dataflow:
    """Records the steps (operators or layers) of a pass, each with the steps whose results it reads.

    Views share a list of writers with their source, so that an in-place operator on a view is a step of the source too.
    """

    def __init__(self) -> None:
        self._reads: list[set[int]] = []
        self._state: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensor -> (step that made it, steps that wrote it)

    @property
    def last(self) -> int:
        """Number of the latest step."""
        return len(self._reads) - 1

    def record(self, inputs: Iterable[Tensor], outputs: Iterable[Tensor], func: Any = None) -> int:
        """Record a step and return its number.

        Args:
            inputs: Tensors that the step reads.
            outputs: Tensors that it returns.
            func: The operator, whose schema declares views and in-place results; None for a layer.
        """
        inputs, step = list(inputs), len(self._reads)
        self._reads.append(set().union(*(self._steps(tensor) for tensor in inputs)))
        written, viewed = _aliases(func) if func is not None else (0, False)
        for tensor in inputs[:written]:
            self._state.setdefault(tensor, (-1, []))[1].append(step)
        writers = self._state.setdefault(inputs[0], (-1, []))[1] if viewed and inputs else None
        for tensor in outputs:
            if not any(tensor is source for source in inputs):
                self._state[tensor] = (step, [] if writers is None else writers)
            elif func is None:  # a layer that works in place
                self._state.setdefault(tensor, (-1, []))[1].append(step)
        return step

    def depend(self, tensor: Tensor, source: Tensor) -> None:
        """Note that the step which made a tensor reads another one too (its size)."""
        made, _ = self._state.get(tensor, (-1, ()))
        if made >= 0:
            self._reads[made] |= set(self._steps(source)) - {made}

    def live(self, outputs: Iterable[Tensor]) -> set[int]:
        """Numbers of the steps that contribute to these tensors."""
        live: set[int] = set()
        stack = [step for tensor in outputs for step in self._steps(tensor)]
        while stack:
            step = stack.pop()
            if step not in live:
                live.add(step)
                stack += self._reads[step]
        return live

    def _steps(self, tensor: Tensor) -> list[int]:
        made, writers = self._state.get(tensor, (-1, ()))
        return [*([made] if made >= 0 else ()), *writers]


@cache
def _aliases(func: Any) -> tuple[int, bool]:
    """How many leading tensor arguments an operator writes to, and whether its results are views of the first."""
    arguments: Sequence[Any] = func._schema.arguments
    written = [i for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]
    viewed = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
    return (max(written) + 1 if written else 0), viewed
