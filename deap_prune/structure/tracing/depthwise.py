"""Depthwise convolutions in float64, for which torch loops over the channels: as a loop over the taps of the kernel.

The products are summed in the same order, so results are the same. On small maps this takes a third to a tenth.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

LARGEST_MAP = 1024  # positions; on larger maps torch's loop is as fast


def is_slow_depthwise(func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Whether a call of a torch function is such a convolution, with all arguments by position as layers give them."""
    if func is not F.conv2d or len(args) != 7 or isinstance(args[4], str):
        return False
    x, weight, groups = args[0], args[1], args[6]
    usual = x.dtype == weight.dtype == torch.float64 and x.dim() == 4 and x.device.type == "cpu"
    return usual and len(weight) == groups == x.shape[1] > 1 and x.shape[2] * x.shape[3] <= LARGEST_MAP


def by_taps(args: tuple[Any, ...]) -> Tensor:
    """The result of a depthwise convolution.

    Args:
        args: Arguments of ``conv2d``: input, weight, bias, stride, padding, dilation, groups.
    """
    x, weight, bias = args[:3]
    (down, across), (top, left), (rows, columns) = (_pair(value) for value in args[3:6])
    last = F.pad(x, (left, left, top, top)).permute(0, 2, 3, 1).contiguous()
    taps = weight[:, 0].permute(1, 2, 0).contiguous()
    height = (last.shape[1] - rows * (len(taps) - 1) - 1) // down + 1
    width = (last.shape[2] - columns * (taps.shape[1] - 1) - 1) // across + 1
    out = last.new_zeros(len(x), height, width, x.shape[1])
    for i, j in product(range(len(taps)), range(taps.shape[1])):
        part = last[:, i * rows :: down, j * columns :: across][:, :height, :width]
        out.addcmul_(part, taps[i, j])
    return (out if bias is None else out + bias).permute(0, 3, 1, 2).contiguous()


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


class DepthwiseByTaps(TorchFunctionMode):
    """Runs these convolutions by taps."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not kwargs and is_slow_depthwise(func, args):
            return by_taps(args)
        return func(*args, **(kwargs or {}))
