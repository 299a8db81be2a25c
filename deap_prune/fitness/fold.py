"""Folding of batch norms into the layers before them, which saves passes over the activations.

A forward pass proposes which layer a batch norm follows. A randomised copy then proves it: folded and unfolded must
give the same outputs.
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
from deap_prune.randomness import same_draws
from deap_prune.reconstruction.flow import record
from deap_prune.structure.layers import describe_layer, spec_of
from deap_prune.structure.tracing.proof import randomised

log = logging.getLogger(__name__)

Pair = tuple[str, str]
_TOLERANCE = 1e-9  # relative, in float64


@torch.no_grad()
def find_pairs(network: nn.Module, forward: Forward, batch: Any) -> tuple[Pair, ...]:
    """Names of pairs (weight layer, batch norm) in which only the batch norm reads the weight layer's outputs.

    Args:
        network: The network in eval mode; it is copied.
        forward: Function of (model, batch) to (outputs, targets).
        batch: A batch; its first two samples are used.
    """
    trial, batch = randomised(network), samples_of(batch, slice(2))
    batch = tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, batch)
    outputs: list[Any] = []
    try:
        with same_draws(0):
            flow = record(trial, lambda: outputs.append(forward(trial, batch)[0]))
    except Exception as error:  # the user's forward function may not take float64
        log.info("batch norms are not folded: the network fails in float64 (%s)", error)
        return ()
    followed = ((name, flow.norm_after(trial, name)) for name, layer in trial.named_modules() if _makes_outputs(layer))
    pairs = tuple((name, norm) for name, norm in followed if norm and isinstance(trial.get_submodule(norm), _BatchNorm))
    if _proven(trial, pairs, forward, batch, outputs[0]):
        return pairs
    return tuple(pair for pair in pairs if _proven(randomised(network), (pair,), forward, batch, outputs[0]))


def _makes_outputs(layer: nn.Module) -> bool:
    """Whether weight and bias make the layer's output channels, and it may have a bias."""
    spec = describe_layer(layer)
    if spec is None or spec.role != "filter" or spec.narrow is not None or spec.whole:
        return False
    return spec.tensors.get("bias") == ("out",)


def _proven(network: nn.Module, pairs: Sequence[Pair], forward: Forward, batch: Any, expected: Any) -> bool:
    """Fold the pairs in place; whether the network gives the expected outputs."""
    fold(network, pairs)
    try:
        with same_draws(0):
            outputs, _ = forward(network, batch)
    except (RuntimeError, ValueError, TypeError):  # other shapes than assumed
        return False
    leaves = [tensors_of(values) for values in (outputs, expected)]
    return all(
        x.shape == y.shape and bool((x - y).abs().max() <= _TOLERANCE * y.abs().max().clamp_min(1e-30))
        for x, y in zip(*leaves, strict=True)
    )


def fold(network: nn.Module, pairs: Sequence[Pair]) -> None:
    """Fold in place: the weight layers get new weights and biases, the batch norms return their input."""
    for first, second in pairs:
        layer, norm = network.get_submodule(first), network.get_submodule(second)
        weight, bias = folded(layer, norm)
        layer._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
        layer._parameters["bias"] = nn.Parameter(bias, requires_grad=False)
        norm.forward = _identity


def _identity(x: Tensor) -> Tensor:
    return x


def folded(layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer that include the batch norm (eval mode)."""
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
