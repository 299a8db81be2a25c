"""Random weights and inputs that a network accepts, for the proof of its pruning space."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from deap_prune.structure.inputs import Call, copy_with

PRIME = 65537  # random values drawn for one tensor
LEVELS = 3  # of randomised: 0 draws freely, higher levels stay closer to the network
_BIASES = {"bias", "running_mean"}
_STATISTICS = {"running_mean", "running_var"}


def randomised(model: nn.Module, seed: int = 0, *, level: int = 0) -> nn.Module:
    """A float64 copy in eval mode with random parameters and buffers.

    A fresh or trained network can hide an error: BN shifts of 0, layer scales of 1e-6, dead channels. Matrices are
    drawn with variance 1 / fan-in, which preserves the scale of activations; vectors are drawn from 0.5 to 1.5. Buffers
    without negative values stay positive: a forward may take their root.

    Args:
        model: The network.
        seed: Seed of the draws.
        level: 0: as above. 1: parameters without negative values stay positive too. 2: parameters and buffers, except
            weights and BN statistics, are the network's own times 0.9 to 1.1.
    """
    twin = copy_with(model, lambda t: _like(t) if t.is_floating_point() else t.clone())
    twin.eval()
    generator = torch.Generator().manual_seed(seed)
    parameters = {id(p) for p in model.parameters()}
    originals = dict([*model.named_parameters(), *model.named_buffers()])
    with torch.no_grad():
        for name, tensor in [*twin.named_parameters(), *twin.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            original, leaf = originals[name].detach(), name.rpartition(".")[2]
            learned = id(originals[name]) in parameters
            if level == 2 and not (learned and leaf == "weight") and leaf not in _STATISTICS:
                torch.mul(original, _fill(_like(original), 0.9, 1.1, generator), out=tensor)
                continue
            low, high = 0.5, 1.5
            signed = (learned and level == 0) or not _positive(original)
            if signed and tensor.dim() > 1 and (fan_in := math.prod(tensor.shape[1:])) > 1:
                low, high = -math.sqrt(3 / fan_in), math.sqrt(3 / fan_in)
            elif signed and leaf in _BIASES:
                low, high = -1.0, 1.0
            _fill(tensor, low, high, generator)
    return twin


def _positive(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and bool((tensor >= 0).all()) and bool((tensor > 0).any())


def _like(tensor: Tensor) -> Tensor:
    """A contiguous float64 tensor of that shape without values."""
    return torch.empty(tensor.shape, dtype=torch.float64, device=tensor.device)


def _fill(tensor: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Fill a contiguous tensor with random values; large ones repeat a prime number of draws, out of step with rows."""
    flat = tensor.view(-1)
    drawn = torch.empty(min(len(flat), PRIME), dtype=torch.float64).uniform_(low, high, generator=generator)
    whole = len(flat) // max(len(drawn), 1) * len(drawn)
    flat[:whole].view(-1, max(len(drawn), 1)).copy_(drawn)
    flat[whole:].copy_(drawn[: len(flat) - whole])
    return tensor


def normal_call(call: Call) -> Call:
    """The call with real inputs drawn from the standard normal distribution."""
    return _drawn(call, _normal)


def positive_call(call: Call) -> Call:
    """The call with positive real inputs, a third of the absolute values of normal ones."""
    return _drawn(call, lambda x, noise: _normal(x, noise).abs() / 3)


def similar_call(call: Call) -> Call:
    """The call with real inputs between 0.9 and 1.1 times its own."""
    return _drawn(call, lambda x, noise: x.double() * _fill(_like(x), 0.9, 1.1, noise))


RANDOM_CALLS: tuple[Callable[[Call], Call], ...] = (normal_call, positive_call, similar_call)


def _drawn(call: Call, make: Callable[[Tensor, torch.Generator], Tensor]) -> Call:
    noise = torch.Generator().manual_seed(2)

    def draw(x: object) -> object:
        return make(x, noise) if isinstance(x, Tensor) and x.is_floating_point() else x

    changed: Call = tree_map(draw, call)
    return changed


def _normal(x: Tensor, noise: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=noise, dtype=torch.float64).to(x.device)
