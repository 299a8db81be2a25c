"""Observe a forward pass: each known layer as one step, and the operators between the layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from deap_prune.structure.inputs import Call, in_order
from deap_prune.structure.layers import describe_layer


class LayerWatch(TorchDispatchMode):
    """Call methods of a subclass while a network runs inside :meth:`watching`.

    Layers, ``before_layer`` and ``after_layer`` run outside of the dispatch mode: every operator under a mode is
    dispatched through Python, which is slow for methods that fit layers.

    Attributes:
        layers: The known layers by name.
        inside: Nesting depth of layers that are running; operators inside of a layer are not reported.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers = {name: m for name, m in network.named_modules() if self._is_layer(m)}
        self.inside = 0
        self._away = False
        self._names = {id(layer): name for name, layer in self.layers.items()}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Override of torch's hook; True, the default, imports torch._dynamo in the first pass, which takes seconds."""
        return False

    @staticmethod
    def _is_layer(module: nn.Module) -> bool:
        try:
            return describe_layer(module) is not None
        except Exception:  # a description that fails on this module; its operators are observed instead
            return False

    def before_layer(self, name: str, layer: nn.Module, arguments: Call) -> None:
        """Called before a layer runs, with its arguments as the caller passed them; see :func:`in_order`."""

    def after_layer(self, name: str, layer: nn.Module, arguments: Call, result: Any) -> None:
        """Called after a layer ran, with arguments in the order of its ``forward``; the result is None if it failed."""

    def after_operator(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Called after an operator of torch's dispatcher ran outside of all layers."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Observe the passes that run in this context, without gradients."""
        handles: list[Any] = []
        for layer in self.layers.values():
            handles.append(layer.register_forward_pre_hook(self._enter, with_kwargs=True))
            handles.append(layer.register_forward_hook(self._leave, with_kwargs=True, always_call=True))
        try:
            with torch.no_grad(), self:
                try:
                    yield
                finally:  # torch calls no hook after a KeyboardInterrupt
                    self.inside = 0
                    self._return()
        finally:
            for handle in handles:
                handle.remove()

    def _leave_mode(self) -> None:
        """Leave the dispatch mode if it is the innermost one (a network may enter modes of its own)."""
        if _get_current_dispatch_mode() is self:
            self._away = True
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def _return(self) -> None:
        if self._away:
            self._away = False
            self.__enter__()  # type: ignore[no-untyped-call]

    def _enter(self, layer: nn.Module, args: Any, kwargs: Any) -> None:
        self.inside += 1
        if self.inside == 1:
            self._leave_mode()
            self.before_layer(self._names[id(layer)], layer, (args, kwargs))

    def _leave(self, layer: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        try:
            if self.inside == 1:
                self.after_layer(self._names[id(layer)], layer, in_order(layer, args, kwargs), result)
        finally:
            self.inside -= 1
            if not self.inside:
                self._return()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.inside:
            self.after_operator(func, args, kwargs or {}, result)
        return result
