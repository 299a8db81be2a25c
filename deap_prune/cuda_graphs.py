"""Functions of a batch as CUDA graphs, because launching single kernels dominates the time of small networks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

log = logging.getLogger(__name__)

_WARM_UP_CALLS = 3  # library handles and work spaces are created on first use, which a capture does not allow
_ATTEMPTS = 3  # a device synchronisation on any thread breaks a capture
_CAPTURE_LOCK = Lock()  # one thread at a time captures, or runs a function that may synchronise the device


class Graphs:
    """A function of a batch, captured once for each batch shape and then replayed.

    After three failed captures the function runs without a graph, with a warning in the log.

    Args:
        run: Function of a batch to a tree of tensors. It uses tensors at fixed addresses, and its control flow does not
            depend on values.
        name: Name of the function in the log.
        alters: The function changes a state, as a training step does. Its first calls then run without a capture and
            serve as the warm-up; otherwise extra calls warm up before the capture.
    """

    def __init__(self, run: Callable[[Any], Any], *, name: str, alters: bool = False) -> None:
        self._run, self._name, self._alters = run, name, alters
        self._calls = self._failures = 0
        self._captured: dict[Any, tuple[torch.cuda.CUDAGraph, Any, Any]] = {}

    def __call__(self, batch: Any) -> Any:
        """The result of the function, in new tensors."""
        self._calls += 1
        key = tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in tree_leaves(batch))
        if key not in self._captured:
            with _CAPTURE_LOCK:
                if self._failures == _ATTEMPTS or (self._alters and self._calls <= _WARM_UP_CALLS):
                    return self._run(batch)
                try:
                    self._captured[key] = self._capture(batch)
                except RuntimeError as error:  # for example, control flow that depends on values
                    self._failures += 1
                    if self._failures == _ATTEMPTS:
                        log.warning("%s can't be captured as a CUDA graph (%s); it runs without", self._name, error)
                    return self._run(batch)
        graph, buffers, outputs = self._captured[key]
        for buffer, value in zip(tree_leaves(buffers), tree_leaves(batch), strict=True):
            if isinstance(buffer, Tensor):
                buffer.copy_(value)
        graph.replay()
        return _clone(outputs)

    def _capture(self, batch: Any) -> tuple[torch.cuda.CUDAGraph, Any, Any]:
        buffers = _clone(batch)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(0 if self._alters else _WARM_UP_CALLS):
                self._run(buffers)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            outputs = self._run(buffers)
        return graph, buffers, outputs


def _clone(tree: Any) -> Any:
    return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, tree)
