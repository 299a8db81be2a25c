"""Record the calls of torch functions that mix channels in a traced pass, with the labels of their channels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from deap_prune.data.batches import tensors_of
from deap_prune.structure.mixing import CallNumbers, Key, MixingCall

Labels = NDArray[np.int64]
LabelledDim = tuple[int, Labels] | None


class Tracer(Protocol):
    """The labels of tensors; see ``LabelTracer``."""

    def of(self, tensor: Tensor) -> Tensor | None: ...  # noqa: D102
    def freeze(self, labels: Tensor | None, reason: str) -> None: ...  # noqa: D102


@dataclass(eq=False)
class RunningCall:
    """A call of a torch function while it runs.

    Attributes:
        key: Its key; None if the code that calls belongs to no module of the network.
        inputs: Labels of its tensor arguments.
        mixed: Labels that its operators mix, with the reason for which they stay dense if the call can't be narrowed.
    """

    key: Key | None
    inputs: list[Tensor | None]
    mixed: list[tuple[Tensor, str]] = field(default_factory=list)


class MixingWatch:
    """Records mixing calls by key.

    Attributes:
        calls: Key to the dimension and labels of each tensor argument, and of each tensor of the result.
    """

    def __init__(self, network: nn.Module) -> None:
        self.calls: dict[Key, tuple[tuple[LabelledDim, ...], tuple[LabelledDim, ...]]] = {}
        self._numbers = CallNumbers(network)
        self._running: RunningCall | None = None

    def start(self, tracer: Tracer, name: str, arguments: Any) -> RunningCall:
        """Note what the operators of a call mix from now on, until :meth:`stop`; :meth:`finish` records it."""
        inputs = [tracer.of(x) for x in tensors_of(arguments)]
        self._running = RunningCall(self._numbers.key(name), inputs)
        return self._running

    def stop(self) -> None:
        """The call has returned, or failed."""
        self._running = None

    def mix(self, tracer: Tracer, labels: Tensor, reason: str) -> None:
        """Note that an operator mixes these channels; they stay dense where no call is running."""
        if self._running is None or self._running.key is None:
            tracer.freeze(labels, reason)
        else:
            self._running.mixed.append((labels, reason))

    def finish(self, tracer: Tracer, call: RunningCall, result: Any) -> None:
        """Record a call that mixed channels; freeze these if their tensors have channels in several dimensions."""
        if not call.mixed or call.key is None:
            return
        inputs = [_labelled(labels) for labels in call.inputs]
        outputs = [_labelled(tracer.of(x)) for x in tensors_of(result)]
        record = (tuple(inputs), tuple(outputs)) if "several" not in (*inputs, *outputs) else None
        if record is not None and _same(self.calls.setdefault(call.key, record), record):
            return
        for labels, reason in call.mixed:
            tracer.freeze(labels, reason)

    def labels(self) -> Labels:
        """Labels of all channels that the calls read."""
        sides = [entry[1] for inputs, _ in self.calls.values() for entry in inputs if entry is not None]
        return np.concatenate([np.zeros(0, dtype=np.int64), *sides])

    def with_ids(self, ids: NDArray[np.intp]) -> tuple[MixingCall, ...]:
        """The calls with channel ids instead of labels, without those whose channels are all dense.

        Args:
            ids: Channel id of each label (-1: dense).
        """
        calls = []
        for key, sides in self.calls.items():
            inputs, outputs = (tuple(_numbered(entry, ids) for entry in side) for side in sides)
            if any(entry is not None for entry in (*inputs, *outputs)):
                calls.append(MixingCall(*key, inputs, outputs))
        return tuple(calls)


def _labelled(labels: Tensor | None) -> Any:
    """The only dimension along which labels vary, and the labels; None without such a dimension."""
    varying = [] if labels is None else [d for d, n in enumerate(labels.shape) if n > 1]
    if labels is None or not varying:
        return None
    return (varying[0], labels.reshape(-1).numpy()) if len(varying) == 1 else "several"


def _numbered(entry: LabelledDim, ids: NDArray[np.intp]) -> Any:
    if entry is None:
        return None
    own = ids[entry[1]]
    return (entry[0], own) if (own >= 0).any() else None


def _same(a: Any, b: Any) -> bool:
    pairs = [(x, y) for one, two in zip(a, b, strict=True) for x, y in zip(one, two, strict=False)]
    return all(
        (x is None) == (y is None) and (x is None or (x[0] == y[0] and np.array_equal(x[1], y[1]))) for x, y in pairs
    )
