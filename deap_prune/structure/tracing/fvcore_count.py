"""FLOPs of a network as fvcore counts them; the closed-form cost must equal this count."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from deap_prune.structure.inputs import Call, copied, copy_with
from deap_prune.structure.layers import narrow_layer, spec_of
from deap_prune.structure.outputs import open_outputs
from deap_prune.structure.tracing.dispatch_count import dispatch_count


class _Positional(nn.Module):
    """Wrap a network for fvcore, which takes positional arguments and needs a tuple of tensors as output."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *args: Any) -> Any:
        split = len(args) - len(self.names)
        outputs = self.model(*args[:split], **dict(zip(self.names, args[split:], strict=True)))
        return tuple(open_outputs(outputs).tensors)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Create constants of a forward pass in this precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def without_fast_paths() -> Iterator[None]:
    """Run attention as its single operators; fvcore has no count for the fused operator of eval mode."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@without_fast_paths()
def count_flops(model: nn.Module, call: Call, *, consume: bool = False) -> tuple[int, dict[str, int]]:
    """Multiply-adds in eval mode as fvcore counts them, and the operators that fvcore does not count.

    fvcore counts convolutions with ``padding="same"`` as 0; here its own formula counts them. A network that torch.jit
    can't trace is counted at the dispatcher, by the same formulas.

    Args:
        model: The network; unchanged unless ``consume``.
        call: Arguments of one forward pass (one sample).
        consume: Convert the network itself to single precision instead of a copy.

    Returns:
        The multiply-adds, and operator name to number of uncounted calls.
    """

    def single(x: Any) -> Any:
        return x.float() if isinstance(x, Tensor) and x.is_floating_point() else x

    as_single = (model.float() if consume else copy_with(model, single), tree_map(single, call), torch.float32)
    for precise in (False, True):
        network, inputs, dtype = (copied(model), call, torch.get_default_dtype()) if precise else as_single
        for count in (_count, dispatch_count):
            try:
                with default_dtype(dtype):
                    return count(network, inputs)
            except Exception as error:  # torch.jit can't trace the network, or the forward casts to a fixed precision
                failure = error
    raise failure


def counts_alike(network: nn.Module, call: Call, total: int) -> bool:
    """Whether the count at the dispatcher is ``total``; operators differ with precision (recurrent layers)."""
    try:
        return dispatch_count(network, call)[0] == total
    except Exception:  # the forward may refuse an operator's mode
        return False


def _count(network: nn.Module, call: Call) -> tuple[int, dict[str, int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis
        from fvcore.nn.jit_handles import conv_flop_count, get_shape

    def padded_mode(inputs: list[Any], outputs: list[Any]) -> int:
        return int(conv_flop_count(get_shape(inputs[0]), get_shape(inputs[1]), get_shape(outputs[0])))

    args, kwargs = call
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of every Python branch in the model
        analysis = FlopCountAnalysis(_Positional(network.eval(), tuple(kwargs)), (*args, *kwargs.values()))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.set_op_handle("aten::_convolution_mode", padded_mode)
        return int(analysis.total()), dict(analysis.unsupported_ops())


def measured_flops(layer: nn.Module, shape: tuple[int, ...]) -> tuple[tuple[str, float], ...]:
    """Cost of a layer as a polynomial in its two widths, fitted to fvcore's counts of narrowed copies.

    Args:
        layer: A layer of a registered type.
        shape: Shape of its input, one sample.
    """
    spec = spec_of(layer)
    powers = ("out", "1") if spec.coupled else ("in*out", "in", "out", "1")
    wide, half = (
        (spec.in_channels, spec.out_channels),
        [max(1, n // spec.blocks // 2) * spec.blocks for n in (spec.in_channels, spec.out_channels)],
    )
    widths = [wide, (half[0], half[0] * spec.coupled)] if spec.coupled else list(product(*zip(wide, half, strict=True)))
    counts = []
    for n_in, n_out in widths:
        small = copy.deepcopy(layer)
        narrow_layer(small, _first(n_in, spec.in_channels, spec.blocks), _first(n_out, spec.out_channels, spec.blocks))
        narrow = [*shape]
        narrow[spec.axis(len(shape))] = n_in
        counts.append(count_flops(small, ((torch.zeros(narrow),), {}))[0])
    terms = [[{"in*out": a * b, "in": a, "out": b, "1": 1}[p] for p in powers] for a, b in widths]
    return tuple(zip(powers, np.linalg.solve(np.array(terms, float), np.array(counts, float)).tolist(), strict=True))


def _first(kept: int, n: int, blocks: int) -> NDArray[np.intp]:
    """Positions of the first channels of each block, ``kept`` in total."""
    return np.flatnonzero(np.arange(n) % (n // blocks) < kept // blocks)
