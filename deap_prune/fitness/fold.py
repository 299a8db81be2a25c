"""Batch norm folded into the layer before it, once its statistics are known: fewer passes over the activations.

Which layer a batch norm follows is proposed by one forward pass and proven on a randomised copy: folded and unfolded
must give the same outputs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from deap_prune.data.batches import Forward, samples_of, tensors_of
from deap_prune.reconstruction.flow import record
from deap_prune.structure.layers import describe_layer, spec_of
from deap_prune.structure.tracing.proof import randomised

log = logging.getLogger(__name__)

Pair = tuple[str, str]
_TOLERANCE = 1e-9  # relative, in float64


@torch.no_grad()
def find_pairs(network: nn.Module, forward: Forward, batch: Any) -> tuple[Pair, ...]:
    """Names of layers (weight layer, batch norm) where nothing but the batch norm reads what the weight layer makes.

    Args:
        network: In eval mode; it is copied.
        forward: Function of (model, batch) to (outputs, targets).
        batch: Its first two samples are enough.
    """
    trial, batch = randomised(network), samples_of(batch, slice(2))
    batch = tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, batch)
    found: list[Any] = []
    try:
        flow = record(trial, lambda: found.append(forward(trial, batch)[0]))
    except Exception as error:  # a forward function of the user's that float64 does not agree with
        log.info("batch norms are not folded: the network fails in float64 (%s)", error)
        return ()
    followed = ((name, flow.norm_after(trial, name)) for name, layer in trial.named_modules() if _weighs(layer))
    pairs = tuple((name, norm) for name, norm in followed if norm and isinstance(trial.get_submodule(norm), _BatchNorm))
    if _proven(trial, pairs, forward, batch, found[0]):
        return pairs
    return tuple(pair for pair in pairs if _proven(randomised(network), (pair,), forward, batch, found[0]))


def _weighs(layer: nn.Module) -> bool:
    """The layer's weight and bias make its output channels, and it may have a bias."""
    spec = describe_layer(layer)
    if spec is None or spec.role != "filter" or spec.narrow is not None or spec.whole:
        return False
    return spec.tensors.get("bias") == ("out",)


def _proven(network: nn.Module, pairs: Sequence[Pair], forward: Forward, batch: Any, wanted: Any) -> bool:
    """Whether the network gives the same outputs with these pairs folded, which they are from now on."""
    fold(network, pairs)
    try:
        outputs, _ = forward(network, batch)
    except (RuntimeError, ValueError, TypeError):  # of another shape than assumed
        return False
    leaves = [tensors_of(found) for found in (outputs, wanted)]
    return all(
        x.shape == y.shape and bool((x - y).abs().max() <= _TOLERANCE * y.abs().max().clamp_min(1e-30))
        for x, y in zip(*leaves, strict=True)
    )


def fold(network: nn.Module, pairs: Sequence[Pair]) -> None:
    """Fold in place: the weight layers get weights and biases of their own, the batch norms pass their input on."""
    for first, second in pairs:
        layer, norm = network.get_submodule(first), network.get_submodule(second)
        weight, bias = folded(layer, norm)
        layer._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
        layer._parameters["bias"] = nn.Parameter(bias, requires_grad=False)
        norm.forward = _pass_on


def _pass_on(x: Tensor) -> Tensor:
    return x


def folded(layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer with the batch norm (eval mode) in them."""
    weight, bias = layer.get_parameter("weight").detach(), layer._parameters.get("bias")
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    scale = torch.rsqrt(variance + norm.eps)  # type: ignore[operator]
    if norm.affine:
        scale = scale * norm.get_parameter("weight").detach()
    shift = -mean * scale if bias is None else (bias.detach() - mean) * scale
    if norm.affine:
        shift = shift + norm.get_parameter("bias").detach()
    shape = [-1 if axis == "out" else 1 for axis in spec_of(layer).tensors["weight"]]
    return weight * scale.view(shape), shift
