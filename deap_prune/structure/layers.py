"""The layer types that can be narrowed: which tensor dimensions count a layer's channels, and what it costs.

A layer type is described once, by a function from the layer to a :class:`LayerSpec`; masking, slimming, parameter and
FLOPs counts all follow from that description. ``@register_layer(MyConv)`` adds a type of your own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deap_prune.errors import RegistryError
from deap_prune.structure.patches import conv_patches, conv_transpose_patches, linear_patches

Axis = Literal["in", "out"]
Shape = tuple[int, ...]
Indices = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """How one layer carries channels.

    Attributes:
        in_channels: Channels read.
        out_channels: Channels produced.
        tensors: Parameter or buffer name to the meaning of each of its dimensions: ``"in"``, ``"out"`` or None.
        widths: Attributes that hold a width: name to ``"in"``, ``"out"`` or a function of (n_in, n_out).
        flops: Function of (input shape, output shape) to the cost as a polynomial in the two widths: coefficients of
            ``"in*out"``, ``"in"``, ``"out"`` and ``"1"``. One multiply-add is one flop (fvcore's convention). None:
            measured by fvcore on narrowed copies of the layer.
        role: ``"filter"`` for layers whose weight rows are filters, ``"norm"`` for per-channel scale and shift.
        channel_dim: Dimension of the input and output activations that holds the channels.
        blocks: Groups of a grouped convolution or GroupNorm: every block keeps the same number of channels.
        coupled: Output channel i is input channel ``i // coupled`` (0: the layer mixes its inputs into new channels).
        whole: The layer looks at all its input channels at once in a way that zeroed weights can't imitate (LayerNorm,
            GroupNorm, index maps): under a mask the narrowed layer runs on the kept channels alone.
        narrow: Replaces the slicing of ``tensors``: function of (layer, kept inputs, kept outputs), in place.
        patches: For a layer whose output is a weighted sum of what it reads: function of (layer, input, picks) to what
            the picked output positions read, shape (picks, in_channels, taps), taps in the weight's order. Positions
            are numbered as in the output, (samples, *space). Layers without it are not re-fitted after pruning.
    """

    in_channels: int
    out_channels: int
    tensors: Mapping[str, tuple[Axis | None, ...]] = field(default_factory=dict)
    widths: Mapping[str, Axis | Callable[[int, int], Any]] = field(default_factory=dict)
    flops: Callable[[Shape, Shape], Mapping[str, float]] | None = lambda x, y: {}
    role: Literal["filter", "norm", "other"] = "other"
    channel_dim: int = 1
    blocks: int = 1
    coupled: int = 0
    whole: bool = False
    narrow: Callable[[Any, Indices, Indices], None] | None = None
    patches: Callable[[Any, Tensor, Tensor], Tensor] | None = None


Describe = Callable[[Any], LayerSpec | None]
_TYPES: dict[type[nn.Module], Describe] = {}


def register_layer(*types: type[nn.Module]) -> Callable[[Describe], Describe]:
    """Teach deap_prune a layer type: decorate a function from the layer to its :class:`LayerSpec`.

    Subclasses are covered, unless they have an entry of their own. ``trace`` proves each use of the layer (masked
    against slimmed), so a wrong description is refused rather than believed.

    Raises:
        RegistryError: If a type is registered already, or is not an ``nn.Module`` subclass.
    """

    def decorate(describe: Describe) -> Describe:
        for kind in types:
            if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
                raise RegistryError(f"register_layer takes nn.Module subclasses, got {kind!r}")
            if kind in _TYPES:
                raise RegistryError(f"the layer type '{kind.__qualname__}' is registered already")
            _TYPES[kind] = describe
        return describe

    return decorate


def describe_layer(layer: nn.Module) -> LayerSpec | None:
    """The layer's spec, or None where its type (and every base of it) is unknown."""
    for kind in type(layer).__mro__:
        if kind in _TYPES:
            return _TYPES[kind](layer)
    return None


def narrow_layer(layer: nn.Module, kept_in: Indices, kept_out: Indices) -> None:
    """Shrink the layer in place to the given input and output channels (sorted positions)."""
    spec = describe_layer(layer)
    if spec is None:
        raise RegistryError(f"no layer type is registered for {type(layer).__qualname__}; use register_layer")
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
    """The part of a layer's tensor that belongs to the kept channels, as a new tensor."""
    counts = {"in": len(kept_in), "out": len(kept_out)}
    both = [axis for axis in spec.tensors[name] if axis is not None]
    if len(both) == 2:  # the columns of a grouped weight are those of one block
        counts[both[1]] //= spec.blocks
    shape = [n if axis is None else counts[axis] for n, axis in zip(tensor.shape, spec.tensors[name], strict=True)]
    return tensor.detach()[selection(tensor, spec, name, kept_in, kept_out)].reshape(shape).contiguous()


def selection(
    tensor: Tensor, spec: LayerSpec, name: str, kept_in: Indices, kept_out: Indices
) -> tuple[Tensor | slice, ...]:
    """Index that selects the kept part of a layer's tensor.

    In a grouped convolution the rows of block b meet only the columns of block b, which are counted from the start of
    that block; there the selected part begins with the dimensions (blocks, rows of a block, columns).
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


def replace_tensor(layer: nn.Module, name: str, value: Tensor) -> None:
    """Put a tensor of another shape in the place of a parameter or buffer."""
    old = getattr(layer, name)
    if isinstance(old, nn.Parameter):
        setattr(layer, name, nn.Parameter(value, requires_grad=old.requires_grad))
    else:
        layer._buffers[name] = value


@register_layer(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def _conv(layer: nn.Conv2d) -> LayerSpec:
    n_in, n_out, groups = layer.in_channels, layer.out_channels, layer.groups
    kernel = prod(layer.kernel_size)
    rest = (None,) * len(layer.kernel_size)
    kind: Any = type(layer)
    plain = _is_linear_in_weight(kind)
    own = {name: p for name, p in _own_parameters(layer) if len(p) == n_out}
    extra: dict[str, tuple[Axis | None, ...]] = {name: ("out", *(None,) * (p.dim() - 1)) for name, p in own.items()}
    if groups == n_in > 1:  # depthwise: a filter follows its channel
        return LayerSpec(
            in_channels=n_in,
            out_channels=n_out,
            tensors={"weight": ("out", None, *rest), "bias": ("out",), **extra},
            widths={"in_channels": "in", "groups": "in", "out_channels": "out"},
            flops=(lambda x, y: {"out": y[0] * kernel * prod(y[2:])}) if plain else None,
            role="filter",
            coupled=n_out // n_in,
            patches=conv_patches if plain else None,
        )
    return LayerSpec(
        in_channels=n_in,
        out_channels=n_out,
        tensors={"weight": ("out", "in", *rest), "bias": ("out",), **extra},
        widths={"in_channels": "in", "out_channels": "out"},
        flops=(lambda x, y: {"in*out": y[0] * kernel * prod(y[2:]) / groups}) if plain else None,
        role="filter",
        blocks=groups,
        whole=not plain,
        patches=conv_patches if plain else None,
    )


def _own_parameters(layer: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What a subclass adds to weight and bias (the gain of a weight-standardised convolution)."""
    return [(n, p) for n, p in layer._parameters.items() if p is not None and p.dim() and n not in ("weight", "bias")]


@cache
def _is_linear_in_weight(kind: Any) -> bool:
    """False for a convolution that works on another weight than its own, such as a standardised one.

    Told by a small layer of the type: twice the weight must give twice the output.
    """
    if kind.forward in (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward):
        return True
    try:
        with torch.random.fork_rng(devices=()), torch.no_grad():
            layer = kind(4, 2, 1, bias=False)
            x = torch.randn(1, 4, *(1,) * (layer.weight.dim() - 2))
            once = kind.forward(layer, x)
            layer.weight.mul_(2)
            return torch.allclose(kind.forward(layer, x), 2 * once, atol=1e-6)
    except Exception:  # a type of its own making: whatever its constructor or forward raises, nothing is known of it
        return False


@register_layer(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def _conv_transpose(layer: nn.ConvTranspose2d) -> LayerSpec:
    n_in, n_out, groups = layer.in_channels, layer.out_channels, layer.groups
    kernel = prod(layer.kernel_size)
    rest = (None,) * len(layer.kernel_size)
    if groups == n_in > 1:  # depthwise
        return LayerSpec(
            in_channels=n_in,
            out_channels=n_out,
            tensors={"weight": ("in", None, *rest), "bias": ("out",)},
            widths={"in_channels": "in", "groups": "in", "out_channels": "out"},
            flops=lambda x, y: {"in": x[0] * kernel * prod(x[2:]) * (n_out // n_in)},
            role="filter",
            coupled=n_out // n_in,
        )
    return LayerSpec(
        in_channels=n_in,
        out_channels=n_out,
        tensors={"weight": ("in", "out", *rest), "bias": ("out",)},
        widths={"in_channels": "in", "out_channels": "out"},
        flops=lambda x, y: {"in*out": x[0] * kernel * prod(x[2:]) / groups},
        role="filter",
        blocks=groups,
        patches=conv_transpose_patches if groups == 1 else None,
    )


@register_layer(nn.Linear)
def _linear(layer: nn.Linear) -> LayerSpec:
    return LayerSpec(
        in_channels=layer.in_features,
        out_channels=layer.out_features,
        tensors={"weight": ("out", "in"), "bias": ("out",)},
        widths={"in_features": "in", "out_features": "out"},
        flops=lambda x, y: {"in*out": prod(y[:-1])},
        role="filter",
        channel_dim=-1,
        patches=linear_patches,
    )


@register_layer(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
def _batch_norm(layer: nn.BatchNorm2d) -> LayerSpec:
    tracked = layer.running_mean is not None
    scale = 2 if layer.affine else 1
    if not tracked:  # normalised by the batch in eval mode too: fvcore's training formula
        scale = 5 if layer.affine else 4
    return LayerSpec(
        in_channels=layer.num_features,
        out_channels=layer.num_features,
        tensors=dict.fromkeys(("weight", "bias", "running_mean", "running_var"), ("out",)),
        widths={"num_features": "out"},
        flops=lambda x, y: {"out": scale * x[0] * prod(x[2:])},
        role="norm",
        coupled=1,
    )


@register_layer(nn.LayerNorm)
def _layer_norm(layer: nn.LayerNorm) -> LayerSpec | None:
    n = layer.normalized_shape[-1]
    scale = 5 if layer.elementwise_affine else 4
    if len(layer.normalized_shape) > 1:
        return None  # normalises over space too: its weight has no channel dimension of its own
    return LayerSpec(
        in_channels=n,
        out_channels=n,
        tensors={"weight": ("out",), "bias": ("out",)},
        widths={"normalized_shape": lambda n_in, n_out: (n_out,)},
        flops=lambda x, y: {"out": scale * prod(x) // n},
        role="norm",
        channel_dim=1 if _channels_first(layer) else -1,
        coupled=1,
        whole=True,
    )


def _channels_first(layer: nn.LayerNorm) -> bool:
    """Whether a subclass is a LayerNorm2d (as in ConvNeXts), told by what its forward accepts."""
    if type(layer).forward is nn.LayerNorm.forward:
        return False
    image = torch.zeros(1, layer.normalized_shape[-1], 1, 1)
    try:
        with torch.no_grad():
            type(layer).forward(layer, image.to(next(layer.parameters(), image)))
    except RuntimeError:
        return False
    return True


@register_layer(nn.GroupNorm)
def _group_norm(layer: nn.GroupNorm) -> LayerSpec:
    scale = 5 if layer.affine else 4
    return LayerSpec(
        in_channels=layer.num_channels,
        out_channels=layer.num_channels,
        tensors={"weight": ("out",), "bias": ("out",)},
        widths={"num_channels": "out"},
        flops=lambda x, y: {"out": scale * x[0] * prod(x[2:])},
        role="norm",
        coupled=1,
        whole=True,
        blocks=layer.num_groups,
    )


@register_layer(nn.PReLU)
def _prelu(layer: nn.PReLU) -> LayerSpec | None:
    if layer.num_parameters == 1:
        return None  # one slope for all channels is a plain element-wise function
    return LayerSpec(
        in_channels=layer.num_parameters,
        out_channels=layer.num_parameters,
        tensors={"weight": ("out",)},
        widths={"num_parameters": "out"},
        coupled=1,
    )
