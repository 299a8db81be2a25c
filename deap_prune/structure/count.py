"""fvcore's count of a network, the yardstick that the closed form must equal."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from deap_prune.structure.inputs import Call


class _Positional(nn.Module):
    """fvcore takes positional arguments only."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *args: Any) -> Any:
        split = len(args) - len(self.names)
        return self.model(*args[:split], **dict(zip(self.names, args[split:], strict=True)))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Constants that a forward pass makes have this precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def count_flops(model: nn.Module, call: Call) -> tuple[int, dict[str, int]]:
    """Multiply-adds as fvcore counts them, eval mode, and the operators that it does not count.

    ``padding="same"`` convolutions, which fvcore counts as nothing, are counted by its own formula.

    Args:
        model: The network; it is not changed.
        call: Arguments of one forward pass (one sample).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis
        from fvcore.nn.jit_handles import conv_flop_count, get_shape

    def padded_mode(inputs: list[Any], outputs: list[Any]) -> int:
        return int(conv_flop_count(get_shape(inputs[0]), get_shape(inputs[1]), get_shape(outputs[0])))

    args, kwargs = tree_map(lambda x: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x, call)
    network = _Positional(copy.deepcopy(model).eval().float(), tuple(kwargs))
    with torch.no_grad(), default_dtype(torch.float32), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of every Python branch in the model
        analysis = FlopCountAnalysis(network, (*args, *kwargs.values()))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.set_op_handle("aten::_convolution_mode", padded_mode)
        return int(analysis.total()), dict(analysis.unsupported_ops())
