"""Registry of the layer types that can be narrowed: their channel dimensions and their cost.

A function from a layer to a :class:`LayerSpec` describes a layer type. Masking, slimming, parameter and FLOPs counts
use that description. ``@register_layer(MyConv)`` adds a user's type; layer_types.py describes those of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deap_prune.errors import RegistryError

Axis = Literal["in", "out"]
Shape = tuple[int, ...]
Indices = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """Channels, tensors and cost of one layer.

    Attributes:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        tensors: Parameter or buffer name to the meaning of each of its dimensions: ``"in"``, ``"out"`` or None.
        widths: Attributes that hold a width: name to ``"in"``, ``"out"`` or a function of (n_in, n_out).
        flops: Function of (input shape, output shape) to the cost as a polynomial in the two widths: coefficients of
            ``"in*out"``, ``"in"``, ``"out"`` and ``"1"``. One multiply-add is one flop (fvcore's convention). None:
            fvcore measures narrowed copies of the layer.
        role: ``"filter"`` for layers whose weight rows are filters, ``"norm"`` for per-channel scale and shift.
        channel_dim: Channel dimension of the input and output activations.
        channel_dims: Channel dimension by rank of the activation, where it differs from ``channel_dim``.
        blocks: Groups of a grouped convolution or GroupNorm: every block keeps the same number of channels.
        coupled: Output channel i belongs to input channel ``i // coupled``; 0 if the layer mixes its input channels.
        whole: The layer uses all its input channels in a way that zeroed weights can't imitate (LayerNorm, GroupNorm,
            index maps). Under a mask the narrowed layer runs on the kept channels only.
        narrow: Replaces the slicing of ``tensors``: function of (layer, kept inputs, kept outputs), in place.
        patches: For a layer whose output is a weighted sum of its input: function of (layer, input, picks) to the
            inputs of the picked output positions, shape (picks, in_channels, taps), taps in the weight's order.
            Positions are numbered as in the output, (samples, *space). Layers without it are not compensated.
    """

    in_channels: int
    out_channels: int
    tensors: Mapping[str, tuple[Axis | None, ...]] = field(default_factory=dict)
    widths: Mapping[str, Axis | Callable[[int, int], Any]] = field(default_factory=dict)
    flops: Callable[[Shape, Shape], Mapping[str, float]] | None = lambda x, y: {}
    role: Literal["filter", "norm", "other"] = "other"
    channel_dim: int = 1
    channel_dims: Mapping[int, int] = field(default_factory=dict)
    blocks: int = 1
    coupled: int = 0
    whole: bool = False
    narrow: Callable[[Any, Indices, Indices], None] | None = None
    patches: Callable[[Any, Tensor, Tensor], Tensor] | None = None

    def axis(self, rank: int) -> int:
        """Channel dimension, from 0, of an activation with ``rank`` dimensions."""
        return self.channel_dims.get(rank, self.channel_dim) % rank


Describe = Callable[[Any], LayerSpec | None]
_TYPES: dict[type[nn.Module] | str, Describe] = {}


def register_layer(*types: type[nn.Module] | str) -> Callable[[Describe], Describe]:
    """Register a layer type: decorate a function from the layer to its :class:`LayerSpec`.

    The description covers subclasses without an entry of their own. ``trace`` proves each use of the layer (masked
    against slimmed), so a wrong description is refused.

    Args:
        types: Classes, or full names of classes (``"package.module.Class"``) whose package need not be installed,
            or ``"*.Class"`` for classes of that name in any package.

    Raises:
        RegistryError: If a type is registered already, or is neither an ``nn.Module`` subclass nor a full name.
    """

    def decorate(describe: Describe) -> Describe:
        for kind in types:
            if not ("." in kind if isinstance(kind, str) else isinstance(kind, type) and issubclass(kind, nn.Module)):
                raise RegistryError(f"register_layer takes nn.Module subclasses, or their full names; got {kind!r}")
            if kind in _TYPES:
                name = kind if isinstance(kind, str) else kind.__qualname__
                raise RegistryError(f"the layer type '{name}' is registered already")
            _TYPES[kind] = describe
        return describe

    return decorate


def describe_layer(layer: nn.Module) -> LayerSpec | None:
    """The layer's spec, or None if neither its type nor a base class is registered."""
    kinds = type(layer).__mro__
    for kind in kinds:
        if describe := _TYPES.get(kind) or _TYPES.get(f"{kind.__module__}.{kind.__qualname__}"):
            return describe(layer)
    for kind in kinds:  # a bare name comes last: a base class that is registered says more
        if not kind.__module__.startswith("torch.") and (describe := _TYPES.get(f"*.{kind.__name__}")):
            return describe(layer)
    return None


def spec_of(layer: nn.Module) -> LayerSpec:
    """The spec of a layer of a registered type, such as a traced layer.

    Raises:
        RegistryError: If its type is not registered.
    """
    spec = describe_layer(layer)
    if spec is None:
        raise RegistryError(f"no layer type is registered for {type(layer).__qualname__}; use register_layer")
    return spec


def narrow_layer(layer: nn.Module, kept_in: Indices, kept_out: Indices) -> None:
    """Shrink the layer in place to the given input and output channels (sorted positions)."""
    spec = spec_of(layer)
    if spec.narrow is not None:
        spec.narrow(layer, kept_in, kept_out)
        return
    for name in spec.tensors:
        tensor = getattr(layer, name)
        if tensor is not None:
            replace_tensor(layer, name, take(tensor, spec, name, kept_in, kept_out))
    for name, width in spec.widths.items():
        n_in, n_out = len(kept_in), len(kept_out)
        setattr(layer, name, width(n_in, n_out) if callable(width) else {"in": n_in, "out": n_out}[width])


def take(tensor: Tensor, spec: LayerSpec, name: str, kept_in: Indices, kept_out: Indices) -> Tensor:
    """The part of a layer's tensor for the kept channels, as a new tensor."""
    counts = {"in": len(kept_in), "out": len(kept_out)}
    both = [axis for axis in spec.tensors[name] if axis is not None]
    if len(both) == 2:  # a grouped weight has the columns of one block only
        counts[both[1]] //= spec.blocks
    shape = [n if axis is None else counts[axis] for n, axis in zip(tensor.shape, spec.tensors[name], strict=True)]
    return tensor.detach()[selection(tensor, spec, name, kept_in, kept_out)].reshape(shape).contiguous()


def selection(
    tensor: Tensor, spec: LayerSpec, name: str, kept_in: Indices, kept_out: Indices
) -> tuple[Tensor | slice, ...]:
    """Index that selects the kept part of a layer's tensor.

    In a grouped convolution the rows of block b use only the columns of block b, numbered from the start of the block.
    There the selected part begins with the dimensions (blocks, rows of a block, columns).
    """
    dims = spec.tensors[name]
    index: dict[Axis, Tensor] = {
        "in": torch.as_tensor(kept_in, device=tensor.device),
        "out": torch.as_tensor(kept_out, device=tensor.device),
    }
    if "in" in dims and "out" in dims:
        rows, columns = sorted(index, key=dims.index)
        within = {"in": spec.in_channels, "out": spec.out_channels}[columns] // spec.blocks
        index[rows] = index[rows].view(spec.blocks, -1, 1)
        index[columns] = index[columns].view(spec.blocks, 1, -1) % within
        if spec.blocks == 1:
            index = {axis: chosen[0] for axis, chosen in index.items()}
    return tuple(slice(None) if axis is None else index[axis] for axis in dims)


def tensor_named(network: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its qualified name."""
    path, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(network.get_submodule(path), leaf)
    return tensor


def replace_tensor(layer: nn.Module, name: str, value: Tensor) -> None:
    """Replace a parameter or buffer by a tensor of another shape."""
    old = getattr(layer, name)
    if isinstance(old, nn.Parameter):
        setattr(layer, name, nn.Parameter(value, requires_grad=old.requires_grad))
    else:
        layer._buffers[name] = value
