"""A function of a batch as CUDA graphs: in small networks, launching the kernels one by one is what takes the time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

log = logging.getLogger(__name__)

_REHEARSALS = 3  # what is made when first needed (handles, work spaces) must not be made in a capture
_ATTEMPTS = 3  # whoever waits for the whole device, on any thread, spoils a capture
_ALONE = Lock()  # one thread at a time captures, or runs what isn't captured and may wait for the device


class Graphs:
    """A function of a batch, captured once for each shape of batch and then replayed.

    What can't be captured, three times, runs as it is, with a warning in the log.

    Args:
        run: Batch to a tree of tensors. It reads and writes tensors at fixed addresses, and looks at no values.
        name: What to call it in the log.
        alters: Whether running it changes anything, as a training step does: then its first calls are run as they are,
            where it is else rehearsed before a capture.
    """

    def __init__(self, run: Callable[[Any], Any], *, name: str, alters: bool = False) -> None:
        self._run, self._name, self._alters = run, name, alters
        self._calls = self._failures = 0
        self._captured: dict[Any, tuple[torch.cuda.CUDAGraph, Any, Any]] = {}

    def __call__(self, batch: Any) -> Any:
        """What the function gives, the caller's to keep."""
        self._calls += 1
        key = tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in tree_leaves(batch))
        if key not in self._captured:
            with _ALONE:
                if self._failures == _ATTEMPTS or (self._alters and self._calls <= _REHEARSALS):
                    return self._run(batch)
                try:
                    self._captured[key] = self._capture(batch)
                except RuntimeError as error:  # a network that looks at values, say
                    self._failures += 1
                    if self._failures == _ATTEMPTS:
                        log.warning("%s can't be captured as a CUDA graph (%s); it runs without", self._name, error)
                    return self._run(batch)
        graph, buffers, found = self._captured[key]
        for buffer, value in zip(tree_leaves(buffers), tree_leaves(batch), strict=True):
            if isinstance(buffer, Tensor):
                buffer.copy_(value)
        graph.replay()
        return _clone(found)

    def _capture(self, batch: Any) -> tuple[torch.cuda.CUDAGraph, Any, Any]:
        buffers = _clone(batch)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(0 if self._alters else _REHEARSALS):
                self._run(buffers)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            found = self._run(buffers)
        return graph, buffers, found


def _clone(tree: Any) -> Any:
    return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, tree)
