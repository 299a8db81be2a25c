"""Torch functions whose meaning is lost at the dispatcher: pooling that becomes a mean, splits by size, padding."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deap_prune.data.batches import tensors_of
from deap_prune.structure.mixing import function_name
from deap_prune.structure.tracing.dataflow import Dataflow
from deap_prune.structure.tracing.mixing_watch import MixingWatch
from deap_prune.structure.tracing.sizes import follow_widths, with_widths
from deap_prune.structure.tracing.width_attributes import holds_sizes

_TORCH, _HERE = str(Path(torch.__file__).parent), str(Path(__file__).parent)
_BY_SIZE: tuple[Any, ...] = (torch.split, Tensor.split, torch.split_with_sizes, Tensor.split_with_sizes)
_BY_SIZE += (Tensor.__getitem__, Tensor.narrow, torch.narrow)
_WITH_WIDTHS: tuple[Any, ...] = (Tensor.view, Tensor.reshape, torch.reshape, Tensor.unflatten, torch.unflatten)
_WITH_WIDTHS += (F.layer_norm, F.rms_norm, F.conv1d, F.conv2d, F.conv3d)  # convolutions: groups, outside of layers


class Tracer(Protocol):
    """The part of a ``LabelTracer`` that observed functions use."""

    inside: int
    split_at: str | None
    flow: Dataflow
    mixing: MixingWatch
    widths: dict[tuple[str, str, int | None], list[Any]]

    def of(self, tensor: Tensor) -> Tensor | None: ...  # noqa: D102
    def freeze(self, labels: Tensor | None, reason: str) -> None: ...  # noqa: D102
    def tie(self, a: Tensor, b: Tensor, reason: str) -> None: ...  # noqa: D102
    def mix(self, labels: Tensor, reason: str) -> None: ...  # noqa: D102
    def attach(self, tensor: Any, labels: Tensor) -> None: ...  # noqa: D102
    def is_constant(self, tensor: Tensor) -> bool: ...  # noqa: D102
    def charge(self, tensor: Tensor, per_element: float) -> None: ...  # noqa: D102
    def where(self) -> str: ...  # noqa: D102
    def running(self) -> Iterator[tuple[str, nn.Module]]: ...  # noqa: D102


class FunctionWatch(TorchFunctionMode):
    """Observe torch functions before they are decomposed into operators."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, tracer = kwargs or {}, self.tracer
        if tracer.inside:
            return func(*args, **kwargs)
        name = function_name(func)
        if name in ("__get__", "size"):  # __get__: an attribute of a tensor
            return self._size(func, args, kwargs)
        by_size = func in _BY_SIZE
        tracer.split_at = caller() if by_size else None
        with self._aside():
            call = tracer.mixing.start(tracer, name, (args, kwargs))
        try:
            out = self._run(func, args, kwargs)
        finally:
            tracer.split_at = None
            tracer.mixing.stop()
        with self._aside():
            if func in CHARGES:
                given = _arguments(func, args, kwargs)
                tracer.charge(given["input"], CHARGES[func](given))
            tracer.mixing.finish(tracer, call, out)
            if (by_size or func in _WITH_WIDTHS) and args and isinstance(args[0], Tensor):
                observe_widths(tracer, args[0], tensors_of(out))
            follow_widths(tracer, name, args, kwargs, out)
        return out

    def _size(self, func: Any, args: Any, kwargs: Any) -> Any:
        out = func(*args, **kwargs)
        if not isinstance(out, torch.Size) and func is not Tensor.size:
            return out
        with self._aside():
            shape = with_widths(self.tracer, args[0], args[0].shape)
        return shape if isinstance(out, torch.Size) else shape[args[1] if len(args) > 1 else kwargs["dim"]]

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Work on labels, which is no step of the network."""
        self.tracer.inside += 1
        try:
            yield
        finally:
            self.tracer.inside -= 1

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func in (F.pad, F.scaled_dot_product_attention):
            given = _arguments(func, args, kwargs)
            if func is F.scaled_dot_product_attention or given.get("mode") == "circular":
                return self._opaque(func, args, kwargs, given)
        return func(*args, **kwargs)

    def _opaque(self, func: Any, args: Any, kwargs: Any, given: dict[str, Any]) -> Any:
        """Run a function as one step."""
        tracer = self.tracer
        tracer.inside += 1
        try:
            out = func(*args, **kwargs)
            tensors = [x for x in given.values() if isinstance(x, Tensor)]
            tracer.flow.record(tensors, [out])
            (_attention if func is F.scaled_dot_product_attention else _circular_pad)(tracer, given, out)
        finally:
            tracer.inside -= 1
        return out


def _channels(tracer: Tracer, tensor: Tensor) -> dict[int, Any]:
    """Dimensions along which the channels of a tensor vary, each with the labels along it."""
    labels = tracer.of(tensor)
    if labels is None:
        return {}
    varying = [d for d, n in enumerate(labels.shape) if n > 1]
    return {d: labels.movedim(d, 0).reshape(labels.shape[d], -1)[:, 0].numpy() for d in varying}


def observe_widths(tracer: Tracer, source: Tensor, outputs: list[Tensor]) -> None:
    """Record attributes of the running modules that equal a number of channels in a split or a view.

    Args:
        tracer: Has the labels of the tensors; its ``widths`` are extended.
        source: The tensor that was split or viewed.
        outputs: Its parts or views.
    """
    channels = [(tensor, _channels(tracer, tensor)) for tensor in [*outputs, source]]
    sizes = [(tensor.shape[d], labels) for tensor, own in channels for d, labels in own.items()]
    parts = [next(iter(own.items())) for _, own in channels[:-1] if own]
    tuples = [([*tensor.shape], own) for tensor, own in channels[:-1]]
    tuples += [([size], {0: labels}) for size, labels in sizes]
    if 1 < len(parts) == len(outputs):
        tuples.append(
            ([out.shape[d] for out, (d, _) in zip(outputs, parts, strict=True)], dict(enumerate(x for _, x in parts)))
        )
    for name, module in islice(tracer.running(), 2 if sizes else 0):
        for attribute, value in vars(module).items():
            if attribute.startswith("_") or not holds_sizes(value):
                continue
            same: Iterable[tuple[int | None, Any]] = ()
            if isinstance(value, int):
                same = [(None, labels) for size, labels in sizes if size == value]
            else:
                same = [entry for shape, own in tuples if [*value] == shape for entry in own.items()]
            for index, labels in same:
                uses = tracer.widths.setdefault((name, attribute, index), [])
                if not any(np.array_equal(labels, use) for use in uses):
                    uses.append(labels)


def _circular_pad(tracer: Tracer, given: dict[str, Any], out: Tensor) -> None:
    """Circular padding over space keeps the channels."""
    label = tracer.of(given["input"])
    if label is None:
        return
    padded = range(label.dim() - len(given["pad"]) // 2, label.dim())
    if any(label.shape[d] > 1 for d in padded):
        tracer.freeze(label, "is padded by other channels")
    else:
        tracer.attach(out, label)


def _attention(tracer: Tracer, given: dict[str, Any], out: Tensor) -> None:
    """Attention contracts the channels of queries with those of keys, and keeps those of values; heads stay apart."""
    reason = "is contracted by 'scaled_dot_product_attention'" + tracer.where()
    query, key, label = (tracer.of(given[name]) for name in ("query", "key", "value"))
    if isinstance(given.get("attn_mask"), Tensor):
        tracer.freeze(tracer.of(given["attn_mask"]), reason)
    if query is not None and key is not None and label is not None and _are_heads(query, key, label):
        tracer.tie(query, key, reason)
        tracer.tie(query, label, reason)
        tracer.attach(out, torch.maximum(torch.maximum(query, key), label))
        return
    if query is not None and key is not None and query.numel() == query.shape[-1] == key.numel() == key.shape[-1]:
        tracer.tie(query.reshape(-1), key.reshape(-1), reason)
        for labels in (query, key):
            tracer.mix(labels, reason)
    else:
        for part in (query, key):
            tracer.freeze(part, reason)
    if label is not None and label.shape[-2] > 1:
        tracer.freeze(label, "is mixed with other channels by 'scaled_dot_product_attention'" + tracer.where())
    elif label is not None:
        tracer.attach(out, label)


def _are_heads(*labels: Tensor) -> bool:
    """Whether the labels of queries, keys and values vary in front of the last two dimensions only."""
    shapes = {label.shape for label in labels}
    return len(shapes) == 1 and labels[0].numel() > 1 and labels[0].shape[-1] == labels[0].shape[-2] == 1


def _norm(given: dict[str, Any]) -> int:
    return 5 if given.get("weight") is not None else 4


def _batch_norm(given: dict[str, Any]) -> int:
    return _norm(given) if given.get("training") else 2 if given.get("weight") is not None else 1


# Functions that fvcore counts: FLOPs per element of the input.
CHARGES: dict[Any, Callable[[dict[str, Any]], int]] = {
    F.adaptive_avg_pool2d: lambda given: 1,
    F.interpolate: lambda given: int(given.get("mode") == "area" and given["input"].dim() == 4),
    F.instance_norm: _norm,
    F.group_norm: _norm,
    F.layer_norm: _norm,
    F.batch_norm: _batch_norm,
}


@cache
def _signature(func: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(func)
    except (TypeError, ValueError):  # a built-in function
        return None


_BUILT_IN = {F.scaled_dot_product_attention: ("query", "key", "value", "attn_mask"), F.pad: ("input", "pad", "mode")}


def _arguments(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    signature = _signature(func)
    if signature is None:
        return dict(zip(_BUILT_IN.get(func, ("input",)), args, strict=False), **kwargs)
    return dict(signature.bind(*args, **kwargs).arguments)


def caller() -> str:
    """File and line of the code that called into torch."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith((_TORCH, _HERE)):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame is not None else "an unknown line"
