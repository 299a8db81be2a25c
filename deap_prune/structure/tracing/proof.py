"""The proof of a pruning space: on a randomised copy, the masked and the slimmed network must agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from deap_prune.structure.inputs import Call, as_precise, copy_with, first_line, forward, training_branches
from deap_prune.structure.masking import masked
from deap_prune.structure.masks import Masks
from deap_prune.structure.slim import slim
from deap_prune.structure.space import PruningSpace
from deap_prune.structure.tracing.fvcore_count import count_flops, default_dtype

TOLERANCE = 1e-9  # float64, relative to the output's scale
COARSER = ((1, torch.float32, 1e-4), (1, None, 3e-2))  # samples, precision (None: the network's own), tolerance
PRIME = 65537  # random values drawn for one tensor


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """A float64 copy in eval mode with every parameter and buffer drawn at random.

    A fresh or a trained network can hide an error: BN shifts of 0, layer scales of 1e-6, dead channels. Matrices keep
    the scale that carries activations through (variance 1 / fan-in); vectors are drawn around 0.5 to 1.5.
    """
    copied = copy_with(
        model, lambda t: torch.empty_like(t, dtype=torch.float64) if t.is_floating_point() else t.clone()
    )
    copied.eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*copied.named_parameters(), *copied.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            low, high = 0.5, 1.5
            if tensor.dim() > 1 and (fan_in := math.prod(tensor.shape[1:])) > 1:
                low, high = -math.sqrt(3 / fan_in), math.sqrt(3 / fan_in)
            elif name.rpartition(".")[2] in {"bias", "running_mean"}:
                low, high = -1.0, 1.0
            # Drawing is the slow part: large tensors repeat what is drawn, out of step with their rows.
            drawn = torch.empty(min(tensor.numel(), PRIME), dtype=tensor.dtype).uniform_(low, high, generator=generator)
            repeated = drawn.repeat(-(-tensor.numel() // max(len(drawn), 1)))[: tensor.numel()]
            tensor.copy_(repeated.view(tensor.shape))
    return copied


def difference(
    model: nn.Module,
    space: PruningSpace,
    masks: Masks,
    call: Call,
    *,
    small: nn.Module | None = None,
    in_training: bool = False,
) -> float:
    """Largest difference between the masked and the slimmed network's outputs, relative to the outputs' scale.

    Args:
        model: The network.
        space: Its space.
        masks: What stays.
        call: One forward pass; floating-point inputs take the network's precision.
        small: The slimmed network, where it is at hand.
        in_training: Run the branches that run in training only (auxiliary heads).
    """
    small = slim(model, space, masks) if small is None else small
    mode = training_branches if in_training else nullcontext
    call = as_precise(call, model)
    with torch.no_grad():
        with mode(small):
            narrow = forward(small, call)
        with masked(model, space, masks), mode(model):
            full = forward(model, call)
    worst = 0.0
    for a, b in zip(narrow, full, strict=True):
        if a.shape != b.shape:
            return math.inf
        if a.numel():
            gap = float((a.double() - b.double()).abs().max() / (b.double().abs().max() + 1e-12))
            worst = max(worst, math.inf if math.isnan(gap) else gap)
    return worst


def _samples(call: Call, count: int) -> Call:
    """The call with its first sample, ``count`` times over."""
    return tree_map(lambda x: torch.cat([x[:1]] * count) if isinstance(x, Tensor) and x.dim() else x, call)


@dataclass(frozen=True, eq=False)
class Proof:
    """A randomised copy of a network, random inputs, how closely outputs must agree, and whether in training too.

    float64 where the forward pass takes it, else float32 (a network that makes float32 constants by name), else the
    network's own precision (a forward that casts).
    """

    model: nn.Module
    call: Call
    tolerance: float
    in_training: bool = False

    @classmethod
    def of(cls, network: nn.Module, call: Call, *, in_training: bool = False) -> Proof:
        """The proof of a network, for the shapes of one call."""
        noise = torch.Generator().manual_seed(2)

        def draw(x: object) -> object:
            if isinstance(x, Tensor) and x.is_floating_point():
                return torch.randn(x.shape, generator=noise, dtype=torch.float64).to(x.device)
            return x

        model = randomised(network)
        own = [*network.parameters(), *network.buffers()]
        found = cls(model, call, TOLERANCE, in_training)
        # Two samples, so that what depends on values is seen more often, unless a batch of one is written into forward.
        for count, dtype, tolerance in ((2, torch.float64, TOLERANCE), (1, torch.float64, TOLERANCE), *COARSER):
            for mine, theirs in zip([*model.parameters(), *model.buffers()], own, strict=True):
                if mine.is_floating_point():
                    mine.data = mine.to(dtype or theirs.dtype)
            sample = as_precise(tree_map(draw, _samples(call, count)), model)
            found = cls(model, sample, tolerance, in_training)
            try:
                with torch.no_grad(), default_dtype(dtype or torch.float32):
                    if all(len(out) == count for out in forward(model, sample) if count > 1):
                        break
            except Exception:  # some operator or constant insists on another batch or precision
                continue
        return found

    def guilty_groups(self, space: PruningSpace) -> dict[str, str]:
        """Groups whose masked and slimmed networks disagree, with the reason; empty if the space is proven."""

        def search(names: Sequence[str]) -> dict[str, str]:
            reason = self.guilty(space, names)
            if not reason:
                return {}
            if len(names) == 1:
                return {names[0]: reason}
            middle = len(names) // 2
            found = {**search(names[:middle]), **search(names[middle:])}
            return found or dict.fromkeys(names, f"{reason}, together with others")

        return search([group.name for group in space.groups])

    def guilty(self, space: PruningSpace, names: Sequence[str]) -> str:
        """Why these groups, pruned together, are not proven; empty if they are.

        Two masks: a random one with a width of its own for every group, and its complement, so that every channel is
        once pruned and once kept; the cost is counted for the first.
        """
        first = Masks.random(space, keep=(0.3, 0.7), seed=1)
        other = Masks({name: ~keep for name, keep in first.items()})
        with default_dtype(torch.float64 if self.tolerance == TOLERANCE else torch.float32):
            return self._verdict(space, first, names, True) or self._verdict(space, other, names, False)

    def _verdict(self, space: PruningSpace, masks: Masks, names: Sequence[str], count: bool) -> str:
        """Why these groups, under these masks, are not proven; empty if they are.

        ``count``: flops and parameters must be the expected ones too.
        """
        chosen = Masks({name: masks[name] for name in names})
        try:
            small = slim(self.model, space, chosen)
            modes = (False, True) if self.in_training else (False,)
            gap = max(difference(self.model, space, chosen, self.call, small=small, in_training=m) for m in modes)
            if gap > self.tolerance:
                return f"masked and slimmed outputs differ (by {gap:.1e})"
            counts = space.kept_counts(chosen)
            if not count:
                return ""
            held, expected = sum(p.numel() for p in small.parameters()), int(space.params_of(counts))
            if held != expected:
                return f"{expected} parameters expected, {held} found after slimming"
            uniform = self.tolerance == TOLERANCE
            sample = _samples(self.call, 1)
            counted, expected = count_flops(small, sample, consume=uniform)[0], int(space.flops_of(counts))
            return "" if counted == expected else f"{expected} flops expected, {counted} counted after slimming"
        except Exception as error:  # whatever the user's forward raises on narrower tensors is the reason
            return f"fails when slimmed: {first_line(error)}"
