"""FLOPs of a network counted at torch's dispatcher, where torch.jit (and with it fvcore) can't trace it.

The formulas and the choice of operators are fvcore's: one multiply-add is one flop, element-wise operators, pooling and
fused attention count 0, and operators that do not contribute to the outputs are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from deap_prune.data.batches import tensors_of
from deap_prune.structure.inputs import Call
from deap_prune.structure.outputs import open_outputs
from deap_prune.structure.tracing.dataflow import Dataflow
from deap_prune.structure.tracing.depthwise import by_taps, is_slow_depthwise

aten = torch.ops.aten
Formula = Callable[[tuple[Any, ...], Tensor], int]


def _convolution(args: tuple[Any, ...], out: Tensor) -> int:
    x, weight, transposed = args[0], args[1], args[6]
    return len(x) * int(weight.numel()) * prod((x if transposed else out).shape[2:])


def _product(args: tuple[Any, ...], out: Tensor) -> int:
    first, second = args[-2:]  # addmm and baddbmm have the bias in front
    return int(first.numel()) * (second.shape[-1] if second.dim() > 1 else 1)


def _norm(args: tuple[Any, ...], affine: int) -> int:
    return int(args[0].numel()) * (5 if args[affine] is not None else 4)


def _batch_norm(args: tuple[Any, ...], out: Tensor) -> int:
    if args[5] is True:
        return _norm(args, 1)
    return int(args[0].numel()) * (2 if args[1] is not None else 1)


def _frozen_batch_norm(args: tuple[Any, ...], out: Tensor) -> int:
    return int(args[0].numel()) * (2 if args[1] is not None else 1)


def _per_output(per_element: int) -> Formula:
    return lambda args, out: per_element * int(out.numel())


FORMULAS: dict[str, Formula] = {
    "convolution": _convolution,
    **dict.fromkeys(("addmm", "mm", "bmm", "mv", "dot"), _product),
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "_native_batch_norm_legit_no_training": _frozen_batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "native_group_norm": lambda args, out: _norm(args, 1),
    "native_layer_norm": lambda args, out: _norm(args, 2),
    "_adaptive_avg_pool2d": lambda args, out: int(args[0].numel()),
    "upsample_nearest2d": _per_output(1),
    "upsample_bilinear2d": _per_output(4),
    "grid_sampler_2d": _per_output(4),
    "grid_sampler_3d": _per_output(4),
    "cudnn_grid_sampler": _per_output(4),
}


class _Counter(TorchDispatchMode):
    """Counts the operators of a pass, with their dataflow."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flow = Dataflow()
        self.counts: list[tuple[int, int]] = []  # step and flops
        self.uncounted: list[tuple[int, str]] = []  # step and operator
        self.fused = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Override of torch's hook; True, the default, imports torch._dynamo, which takes seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = tensors_of(result)
        step = self.flow.record(tensors_of((args, kwargs)), outputs, func)
        name = func.overloadpacket.__name__
        if not self.fused and outputs:
            if name in FORMULAS:
                self.counts.append((step, FORMULAS[name](args, outputs[0])))
            elif torch.Tag.pointwise not in func.tags and not any(r.alias_info for r in func._schema.returns):
                self.uncounted.append((step, f"aten::{name}"))
        return result

    def aside(self, args: tuple[Any, ...]) -> Tensor:
        """A depthwise convolution as one step, run outside of the mode, which would see each tap."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        try:
            result = by_taps(args)
        finally:
            self.__enter__()  # type: ignore[no-untyped-call]
        step = self.flow.record(tensors_of(args), [result])
        self.counts.append((step, len(args[0]) * int(args[1].numel()) * prod(result.shape[2:])))
        return result


class _Functions(TorchFunctionMode):
    """Sees functions that dispatch to other operators than the ones which fvcore counts."""

    def __init__(self, counter: _Counter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not kwargs and is_slow_depthwise(func, args):
            return self.counter.aside(args)
        fused = func is F.scaled_dot_product_attention
        before = len(self.counter.counts)
        self.counter.fused = fused or self.counter.fused
        try:
            result = func(*args, **(kwargs or {}))
        finally:
            self.counter.fused = self.counter.fused and not fused
        flow = self.counter.flow
        if fused and flow.last >= 0:
            self.counter.uncounted.append((flow.last, "aten::scaled_dot_product_attention"))
        if func is F.adaptive_avg_pool2d and len(self.counter.counts) == before:  # computed as a mean
            x = args[0] if args else (kwargs or {})["input"]
            self.counter.counts.append((flow.last, int(x.numel())))
        if func is F.instance_norm:  # computed as a batch norm
            affine = dict(zip(("input", "running_mean", "running_var", "weight"), args, strict=False), **(kwargs or {}))
            per_element = 5 if affine.get("weight") is not None else 4
            self.counter.counts[before:] = [(flow.last, per_element * int(result.numel()))]
        return result


def dispatch_count(network: nn.Module, call: Call) -> tuple[int, dict[str, int]]:
    """Multiply-adds of one forward pass in eval mode, and operator name to number of uncounted calls.

    Args:
        network: The network.
        call: Arguments of one forward pass (one sample).
    """
    args, kwargs = call
    counter = _Counter()
    with torch.no_grad(), counter, _Functions(counter):
        outputs = open_outputs(network.eval()(*args, **kwargs))
    live = counter.flow.live(outputs.tensors)
    if outputs.closed or outputs.arrays:  # what contributes to a closed object is unknown
        live = set(range(counter.flow.last + 1))
    total = sum(flops for step, flops in counter.counts if step in live)
    return total, dict(Counter(name for step, name in counter.uncounted if step in live))
