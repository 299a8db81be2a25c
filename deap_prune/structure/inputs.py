"""How a network is run and copied for tracing: example inputs of any shape, modes, precision."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from deap_prune.data.batches import tensors_of

Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
Call = tuple[tuple[Any, ...], dict[str, Any]]


def as_call(inputs: Inputs) -> Call:
    """Positional and keyword arguments of a forward pass."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, (tuple, list)) else ((inputs,), {})


def first_sample(inputs: Inputs, device: torch.device) -> Call:
    """The call with the first sample of the batch alone, on a device."""
    return tree_map(
        lambda x: x[:1].to(device).contiguous() if isinstance(x, Tensor) and x.dim() else x, as_call(inputs)
    )


def in_order(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """A layer's arguments in the order of its ``forward``: what it reads comes first, ``layer(input=x)`` or not."""
    if not kwargs:
        return args, kwargs
    bound = inspect.signature(layer.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.args, bound.kwargs


def forward(model: nn.Module, call: Call) -> list[Tensor]:
    """All output tensors of a forward pass, flattened out of tuples and dicts."""
    args, kwargs = call
    return tensors_of(model(*args, **kwargs))


def as_precise(call: Call, model: nn.Module) -> Call:
    """The call with floating-point inputs in the precision of the model's first parameter."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float64)
    return tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, call)


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of its text."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards every module is in the mode that it was in."""
    before = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


@contextmanager
def same_draws() -> Iterator[None]:
    """Random numbers are the same each time; afterwards the generators are as they were."""
    on_cuda = torch.cuda.is_initialized()  # else nothing of it is touched: a process that forks later must not
    with torch.random.fork_rng(range(torch.cuda.device_count()) if on_cuda else ()):
        (torch if on_cuda else torch.default_generator).manual_seed(0)
        yield


@contextmanager
def training_branches(model: nn.Module) -> Iterator[None]:
    """What a network runs in training only (auxiliary heads) runs, while statistics and dropout stay still.

    Modules that hold others are in train mode, the others, and torch's own (attention), in eval mode. The same random
    numbers are drawn each time, and afterwards the generators are as they were.
    """
    with evaluating(model), same_draws(), _WithoutDropout():
        for module in model.modules():
            module.training = bool(module._modules) and not type(module).__module__.startswith("torch.nn.modules.")
        yield


class _WithoutDropout(TorchFunctionMode):
    """Functional dropout, which obeys the mode of the module that calls it, drops nothing."""

    DROPOUT = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self.DROPOUT:
            return args[0] if args else kwargs["input"]
        if func is F.scaled_dot_product_attention:
            args, kwargs = args[:4], {**kwargs, "dropout_p": 0.0, **({"is_causal": args[5]} if len(args) > 5 else {})}
        return func(*args, **kwargs)


def copy_with(model: nn.Module, convert: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy whose parameters and buffers are ``convert(tensor)``; the originals are not copied first."""
    memo: dict[int, Tensor] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        new = convert(tensor.detach())
        memo[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
    return copy.deepcopy(model, memo)
