"""Run and copy networks for tracing: example inputs, modes, precision."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from deap_prune.errors import ModelError
from deap_prune.structure.deep_copy import deep_copy
from deap_prune.structure.outputs import open_outputs

Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
Call = tuple[tuple[Any, ...], dict[str, Any]]


def as_call(inputs: Inputs) -> Call:
    """Positional and keyword arguments of a forward pass."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, (tuple, list)) else ((inputs,), {})


def on_device(call: Call, device: torch.device) -> Call:
    """The call with contiguous tensors on a device."""
    return tree_map(lambda x: x.to(device).contiguous() if isinstance(x, Tensor) else x, call)


def in_order(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """A layer's arguments in the order of its ``forward``, so that its input comes first in ``layer(input=x)`` too."""
    if not kwargs:
        return args, kwargs
    bound = inspect.signature(layer.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.args, bound.kwargs


def forward(model: nn.Module, call: Call) -> list[Tensor]:
    """All output tensors of a forward pass; see :func:`open_outputs`."""
    args, kwargs = call
    return open_outputs(model(*args, **kwargs)).tensors


def as_precise(call: Call, model: nn.Module) -> Call:
    """The call with floating-point inputs in the precision of the model's first parameter."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float64)
    return tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, call)


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of its text."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run in eval mode; restore the mode of every module afterwards.

    Raises:
        ModelError: If the network has no eval mode (torch.export's programs).
    """
    before = {module: module.training for module in model.modules()}
    try:
        try:
            model.eval()
        except Exception as error:
            raise ModelError(f"the network can't be put into eval mode: {first_line(error)}") from error
        yield
    finally:
        if model.training != before[model]:
            model.train(before[model])  # torch.fx modules may switch between two graphs here
        for module, mode in before.items():
            module.training = mode


@contextmanager
def same_draws() -> Iterator[None]:
    """Draw the same random numbers each time; restore the generators afterwards."""
    on_cuda = torch.cuda.is_initialized()  # initialising CUDA here would break processes that fork later
    with torch.random.fork_rng(range(torch.cuda.device_count()) if on_cuda else ()):
        (torch if on_cuda else torch.default_generator).manual_seed(0)
        yield


@contextmanager
def training_branches(model: nn.Module) -> Iterator[None]:
    """Run the branches that run in training only (auxiliary heads), without dropout or updates of statistics.

    Modules with submodules are in train mode; leaf modules and torch's own modules (attention) are in eval mode. Each
    time the same random numbers are drawn, and the generators are restored afterwards.
    """
    with evaluating(model), same_draws(), _WithoutDropout():
        model.train()
        for module in model.modules():
            module.training = bool(module._modules) and not type(module).__module__.startswith("torch.nn.modules.")
        yield


class _WithoutDropout(TorchFunctionMode):
    """Turn functional dropout, which follows the mode of the calling module, into the identity."""

    DROPOUT = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self.DROPOUT:
            return args[0] if args else kwargs["input"]
        if func is F.scaled_dot_product_attention:
            args, kwargs = args[:4], {**kwargs, "dropout_p": 0.0, **({"is_causal": args[5]} if len(args) > 5 else {})}
        return func(*args, **kwargs)


def copy_with(model: nn.Module, convert: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy whose parameters and buffers are ``convert(tensor)``; the original tensors are not copied."""
    memo: dict[int, Tensor] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        new = convert(tensor.detach())
        memo[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
    return copied(model, memo)


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy in the same mode (copies of torch.fx modules are in train mode).

    Args:
        model: The network.
        memo: Objects that are not copied, as for ``copy.deepcopy``.
    """
    twin = deep_copy(model, memo)
    modes = {name: module.training for name, module in model.named_modules()}
    if any(module.training != modes.get(name, module.training) for name, module in twin.named_modules()):
        twin.train(model.training)  # a module may switch between two graphs here
        for name, module in twin.named_modules():
            module.training = modes.get(name, module.training)
    return twin
