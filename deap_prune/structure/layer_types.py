"""Descriptions of the layer types of torch and torchvision that can be narrowed."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from math import prod
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from deap_prune.structure.layers import Axis, LayerSpec, register_layer
from deap_prune.structure.patches import conv_patches, conv_transpose_patches, linear_patches


@register_layer(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def _conv(layer: nn.Conv2d) -> LayerSpec:
    n_in, n_out, groups = layer.in_channels, layer.out_channels, layer.groups
    kernel = prod(layer.kernel_size)
    rest = (None,) * len(layer.kernel_size)
    channel_dim = -1 - len(rest)  # from the end, so that an input without batch dimension works too
    kind: Any = type(layer)
    plain = _is_linear_in_weight(kind)
    whole_weight: tuple[Axis | None, ...] = ("out", None if groups == n_in > 1 else "in", *rest)
    extra: dict[str, tuple[Axis | None, ...]] = {
        name: whole_weight if p.shape == layer.weight.shape else ("out", *(None,) * (p.dim() - 1))
        for name, p in _own_tensors(layer)
        if len(p) == n_out
    }
    if groups == n_in > 1:  # depthwise: each filter belongs to one input channel
        return LayerSpec(
            in_channels=n_in,
            out_channels=n_out,
            tensors={"weight": ("out", None, *rest), "bias": ("out",), **extra},
            widths={"in_channels": "in", "groups": "in", "out_channels": "out"},
            flops=(lambda x, y: {"out": prod(y) // n_out * kernel}) if plain else None,
            role="filter",
            channel_dim=channel_dim,
            coupled=n_out // n_in,
            patches=conv_patches if plain else None,
        )
    return LayerSpec(
        in_channels=n_in,
        out_channels=n_out,
        tensors={"weight": ("out", "in", *rest), "bias": ("out",), **extra},
        widths={"in_channels": "in", "out_channels": "out"},
        flops=(lambda x, y: {"in*out": prod(y) // n_out * kernel / groups}) if plain else None,
        role="filter",
        channel_dim=channel_dim,
        blocks=groups,
        whole=not plain,
        patches=conv_patches if plain else None,
    )


def _own_tensors(layer: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers that a subclass adds to weight and bias (a gain, a mask of the weight)."""
    tensors = [*layer._parameters.items(), *layer._buffers.items()]
    return [(name, t) for name, t in tensors if t is not None and t.dim() and name not in ("weight", "bias")]


@cache
def _is_linear_in_weight(kind: Any) -> bool:
    """Whether the output of a convolution type is linear in its weight; False for weight standardisation.

    Tested on a small layer of the type: twice the weight must give twice the output.
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
    except Exception:  # the constructor or forward of an unknown type may raise anything
        return False


@register_layer(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def _conv_transpose(layer: nn.ConvTranspose2d) -> LayerSpec:
    n_in, n_out, groups = layer.in_channels, layer.out_channels, layer.groups
    kernel = prod(layer.kernel_size)
    rest = (None,) * len(layer.kernel_size)
    channel_dim = -1 - len(rest)  # from the end, so that an input without batch dimension works too
    if groups == n_in > 1:  # depthwise
        return LayerSpec(
            in_channels=n_in,
            out_channels=n_out,
            tensors={"weight": ("in", None, *rest), "bias": ("out",)},
            widths={"in_channels": "in", "groups": "in", "out_channels": "out"},
            flops=lambda x, y: {"in": prod(x) // n_in * kernel * (n_out // n_in)},
            role="filter",
            channel_dim=channel_dim,
            coupled=n_out // n_in,
        )
    return LayerSpec(
        in_channels=n_in,
        out_channels=n_out,
        tensors={"weight": ("in", "out", *rest), "bias": ("out",)},
        widths={"in_channels": "in", "out_channels": "out"},
        flops=lambda x, y: {"in*out": prod(x) // n_in * kernel / groups},
        role="filter",
        channel_dim=channel_dim,
        blocks=groups,
        patches=conv_transpose_patches if groups == 1 else None,
    )


@register_layer("torchvision.ops.deform_conv.DeformConv2d")  # fvcore counts 0
def _deformable_conv(layer: nn.Conv2d) -> LayerSpec | None:
    if layer.groups == layer.in_channels > 1:
        return None  # depthwise: rare, and its offsets may belong to groups of channels
    return LayerSpec(
        in_channels=layer.in_channels,
        out_channels=layer.out_channels,
        tensors={"weight": ("out", "in", None, None), "bias": ("out",)},
        widths={"in_channels": "in", "out_channels": "out"},
        role="filter",
        blocks=layer.groups,
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
    if layer.running_mean is None:  # uses batch statistics in eval mode too: fvcore's formula for training
        return _norm_by_channel(layer.num_features, 5 if layer.affine else 4)
    return _norm_by_channel(layer.num_features, 2 if layer.affine else 1)


@register_layer(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def _instance_norm(layer: nn.InstanceNorm2d) -> LayerSpec:
    return _norm_by_channel(layer.num_features, 5 if layer.affine else 4)


@register_layer("torchvision.ops.misc.FrozenBatchNorm2d")  # used in pretrained detectors; fvcore counts 0
def _frozen_batch_norm(layer: nn.Module) -> LayerSpec:
    return replace(_norm_by_channel(len(cast(Tensor, layer.weight)), 0), widths={})


def _norm_by_channel(n: int, per_element: int) -> LayerSpec:
    """A norm that treats each channel separately, at ``per_element`` multiply-adds per element."""
    return LayerSpec(
        in_channels=n,
        out_channels=n,
        tensors=dict.fromkeys(("weight", "bias", "running_mean", "running_var"), ("out",)),
        widths={"num_features": "out"},
        flops=lambda x, y: {"out": per_element * x[0] * prod(x[2:])},
        role="norm",
        coupled=1,
    )


@register_layer(nn.LayerNorm)
def _layer_norm(layer: nn.LayerNorm) -> LayerSpec | None:
    n, *rest = layer.normalized_shape
    scale = 5 if layer.elementwise_affine else 4
    if any(size > 1 for size in rest):
        return None  # it normalises over space too, so its weight has no channel dimension
    dims = _channel_dims(layer) if not rest else {}
    return LayerSpec(
        in_channels=n,
        out_channels=n,
        tensors=dict.fromkeys(("weight", "bias"), ("out", *(None,) * len(rest))),
        widths={"normalized_shape": lambda n_in, n_out: (n_out, *rest)},
        flops=lambda x, y: {"out": scale * prod(x) // n},
        role="norm",
        channel_dim=dims.get(4, -1 - len(rest)),
        channel_dims=dims,
        coupled=1,
        whole=True,
    )


_DIMS: WeakKeyDictionary[nn.Module, tuple[int, dict[int, int]]] = WeakKeyDictionary()


def _channel_dims(layer: nn.LayerNorm) -> dict[int, int]:
    """Channel dimension by rank of the input, for subclasses that take images (as in ConvNeXts), images and tokens, ...

    Tested by running the forward of the subclass on small inputs.
    """
    if type(layer).forward is nn.LayerNorm.forward:
        return {}
    n = layer.normalized_shape[-1]
    if (known := _DIMS.get(layer)) is not None and known[0] == n:
        return known[1]
    side = 2 if n == 1 else 1
    dims: dict[int, int] = {}
    for rank, dim in ((4, 1), (4, 3), (3, 2), (3, 1), (2, 1), (5, 1), (5, 4)):
        shape = [side] * rank
        shape[dim] = n
        try:
            with torch.no_grad():
                out = type(layer).forward(layer, torch.zeros(shape).to(next(layer.parameters(), torch.empty(0))))
        except Exception:  # the forward of an unknown type may raise anything
            continue
        if out.shape == torch.Size(shape):
            dims.setdefault(rank, dim)
    _DIMS[layer] = (n, dims)
    return dims


@register_layer(nn.GroupNorm)
def _group_norm(layer: nn.GroupNorm) -> LayerSpec:
    scale = 5 if layer.affine else 4
    if layer.num_groups == layer.num_channels > 1:  # each channel by itself
        own = _norm_by_channel(layer.num_channels, scale)
        return replace(
            own, tensors={"weight": ("out",), "bias": ("out",)}, widths={"num_channels": "out", "num_groups": "out"}
        )
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
        return None  # with one slope for all channels it is an element-wise function
    return LayerSpec(
        in_channels=layer.num_parameters,
        out_channels=layer.num_parameters,
        tensors={"weight": ("out",)},
        widths={"num_parameters": "out"},
        coupled=1,
    )
