"""The proof of a pruning space: on a randomised copy, the masked and the slimmed network must agree."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from deap_prune.structure.count import count_flops
from deap_prune.structure.inputs import Call, forward
from deap_prune.structure.masking import masked
from deap_prune.structure.masks import Masks
from deap_prune.structure.slim import slim
from deap_prune.structure.space import PruningSpace

TOLERANCE = 1e-9  # float64, relative to the output's scale


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """A float64 copy in eval mode with every parameter and buffer drawn at random.

    A fresh or a trained network can hide an error: BN shifts of 0, layer scales of 1e-6, dead channels. Matrices keep
    the scale that carries activations through (variance 1 / fan-in); vectors are drawn around 0.5 to 1.5.
    """
    copied = copy.deepcopy(model).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*copied.named_parameters(), *copied.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            if tensor.dim() > 1 and math.prod(tensor.shape[1:]) > 1:
                value = (2 * noise - 1) * math.sqrt(3 / math.prod(tensor.shape[1:]))
            elif name.rpartition(".")[2] in {"bias", "running_mean"}:
                value = 2 * noise - 1
            else:
                value = 0.5 + noise
            tensor.copy_(value.to(tensor.device))
    return copied


def difference(model: nn.Module, space: PruningSpace, masks: Masks, call: Call) -> float:
    """Largest difference between the masked and the slimmed network's outputs, relative to the outputs' scale."""
    call = tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, call)
    with torch.no_grad():
        small = forward(slim(model, space, masks), call)
        with masked(model, space, masks):
            full = forward(model, call)
    worst = 0.0
    for a, b in zip(small, full, strict=True):
        if a.shape != b.shape:
            return math.inf
        if a.numel():
            gap = float((a.double() - b.double()).abs().max() / (b.double().abs().max() + 1e-12))
            worst = max(worst, math.inf if math.isnan(gap) else gap)
    return worst


def guilty_groups(model: nn.Module, space: PruningSpace, call: Call) -> dict[str, str]:
    """Groups whose masked and slimmed networks disagree, with the reason; empty if the space is proven.

    Args:
        model: A randomised copy.
        space: The space to prove.
        call: One sample.
    """
    masks = Masks.random(space, keep=0.6, seed=1)
    noise = torch.Generator().manual_seed(2)

    def draw(x: object) -> object:
        if isinstance(x, Tensor) and x.is_floating_point():
            return torch.randn(x.shape, generator=noise, dtype=torch.float64).to(x.device)
        return x

    sample: Call = tree_map(draw, call)

    def verdict(names: Sequence[str]) -> str:
        chosen = Masks({name: masks[name] for name in names})
        try:
            gap = difference(model, space, chosen, sample)
            if gap > TOLERANCE:
                return f"masked and slimmed outputs differ (by {gap:.1e})"
            counted = count_flops(slim(model, space, chosen), sample)[0]
            expected = int(space.flops_of(space.kept_counts(chosen)))
            return "" if counted == expected else f"{expected} flops expected, {counted} counted after slimming"
        except Exception as error:  # whatever the user's forward raises on narrower tensors is the reason
            return f"fails when slimmed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"

    def search(names: Sequence[str]) -> dict[str, str]:
        reason = verdict(names)
        if not reason:
            return {}
        if len(names) == 1:
            return {names[0]: reason}
        half = len(names) // 2
        found = {**search(names[:half]), **search(names[half:])}
        return found or dict.fromkeys(names, f"{reason}, together with others")

    return search([group.name for group in space.groups])
