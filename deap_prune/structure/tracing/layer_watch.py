"""A forward pass seen step by step: each known layer as one step, and the operators between the layers."""

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
    """Calls its methods as a network runs inside :meth:`watching`; subclasses note what they need.

    A layer runs outside of the mode, and so does what is called before and after it: each operator under a mode takes
    a detour through Python, and fitting a layer is thousands of them.

    Attributes:
        layers: The known layers by name.
        inside: How many layers deep the pass is; what runs inside of a layer is not seen.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers = {name: m for name, m in network.named_modules() if describe_layer(m) is not None}
        self.inside = 0
        self._away = False
        self._names = {id(layer): name for name, layer in self.layers.items()}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch's own hook; True, the default, imports torch._dynamo in the first pass, which takes seconds."""
        return False

    def before_layer(self, name: str, layer: nn.Module, arguments: Call) -> None:
        """A layer is about to run. Arguments are as they were given; see :func:`in_order`."""

    def after_layer(self, name: str, layer: nn.Module, arguments: Call, result: Any) -> None:
        """A layer has run; the result is None if it failed. Arguments are in the order of its ``forward``."""

    def after_operator(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """An operator of torch's dispatcher has run outside of all layers."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See what runs in here, without gradients."""
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
        """Out of the mode, if it is the innermost one (a network may enter modes of its own)."""
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
