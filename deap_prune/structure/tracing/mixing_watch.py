"""Record the calls of torch functions that mix channels in a traced pass, with the labels of their channels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deap_prune.data.batches import tensors_of
from deap_prune.structure.mixing import CallNumbers, Channels, Key, MixingCall

Labels = NDArray[np.int64]
Mixed = list[tuple[Tensor, str]]


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
    mixed: Mixed = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class RecordedCall:
    """A call that mixed channels.

    Attributes:
        inputs: Labels of each tensor argument; None: it has none.
        outputs: Labels of each tensor of the result.
        mixed: As in :class:`RunningCall`.
    """

    inputs: tuple[Labels | None, ...]
    outputs: tuple[Labels | None, ...]
    mixed: Mixed


class MixingWatch:
    """Records mixing calls by key.

    Attributes:
        calls: The recorded calls.
    """

    def __init__(self, network: nn.Module) -> None:
        self.calls: dict[Key, RecordedCall] = {}
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
        """Record a call that mixed channels; freeze these if another pass has mixed other channels there."""
        if not call.mixed or call.key is None:
            return
        outputs = [tracer.of(x) for x in tensors_of(result)]
        self._record(tracer, call.key, RecordedCall(_arrays(call.inputs), _arrays(outputs), call.mixed))

    def key(self, name: str) -> Key | None:
        """The key of the call of a function by the layer that has just run."""
        return self._numbers.key(name)

    def record(self, tracer: Tracer, key: Key | None, weights: Sequence[Tensor], labels: Tensor, reason: str) -> None:
        """Record the call of a function by a layer that mixes channels and returns as many.

        Args:
            tracer: Has the labels.
            key: Its key.
            weights: Other tensor arguments, without channels.
            labels: Labels of its input, and of its output.
            reason: Why the channels stay dense if the call can't be narrowed.
        """
        if key is None:
            tracer.freeze(labels, reason)
        else:
            inputs = _arrays([labels, *(None for _ in weights)])
            self._record(tracer, key, RecordedCall(inputs, _arrays([labels]), [(labels, reason)]))

    def _record(self, tracer: Tracer, key: Key, record: RecordedCall) -> None:
        first = self.calls.setdefault(key, record)
        if first is not record and not (_same(first.inputs, record.inputs) and _same(first.outputs, record.outputs)):
            _freeze(tracer, first)
            _freeze(tracer, record)

    def settle(self, tracer: Tracer, classes: Labels) -> None:
        """Freeze the channels of calls whose tensors have channels in several dimensions.

        Args:
            tracer: Has the labels.
            classes: Class of each label; labels that are tied share one.
        """
        for call in self.calls.values():
            if any(x is not None and len(_varying(classes[x])) > 1 for x in (*call.inputs, *call.outputs)):
                _freeze(tracer, call)

    def labels(self) -> Labels:
        """Labels of all channels that the calls read."""
        sides = [x.reshape(-1) for call in self.calls.values() for x in call.inputs if x is not None]
        return np.concatenate([np.zeros(0, dtype=np.int64), *sides])

    def with_ids(self, ids: NDArray[np.intp]) -> tuple[MixingCall, ...]:
        """The calls with channel ids instead of labels, without those whose channels are all dense.

        Args:
            ids: Channel id of each label (-1: dense).
        """
        calls = []
        for key, call in self.calls.items():
            inputs, outputs = (tuple(_channels(x, ids) for x in side) for side in (call.inputs, call.outputs))
            if any(entry is not None for entry in (*inputs, *outputs)):
                calls.append(MixingCall(*key, inputs, outputs))
        return tuple(calls)


def _arrays(labels: Iterable[Tensor | None]) -> tuple[Labels | None, ...]:
    return tuple(None if x is None else x.numpy() for x in labels)


def _freeze(tracer: Tracer, call: RecordedCall) -> None:
    reason = call.mixed[0][1]
    for labels in [*(x for x, _ in call.mixed), *(torch.from_numpy(x) for x in call.inputs if x is not None)]:
        tracer.freeze(labels, reason)


def _varying(values: NDArray[Any]) -> list[int]:
    """Dimensions along which an array varies."""
    return [d for d, n in enumerate(values.shape) if n > 1 and bool((values != values.take([0], d)).any())]


def _channels(labels: Labels | None, ids: NDArray[np.intp]) -> Channels:
    """The dimension along which channels vary, and their ids; None if all of them are dense."""
    if labels is None or (ids[labels] < 0).all():
        return None
    own = ids[labels]
    dim = (_varying(own) or [int(np.argmax(own.shape))])[0]
    return dim, np.moveaxis(own, dim, 0).reshape(own.shape[dim], -1)[:, 0]


def _same(a: Sequence[Labels | None], b: Sequence[Labels | None]) -> bool:
    return len(a) == len(b) and all(
        x is y or (x is not None and y is not None and np.array_equal(x, y)) for x, y in zip(a, b, strict=True)
    )
