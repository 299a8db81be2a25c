"""Proof of a pruning space: on a randomised copy, the masked and the slimmed network must give the same outputs."""

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
from deap_prune.structure.tracing.samples import Samples

TOLERANCE = 1e-9  # float64, relative to the output's scale
COARSER = ((1, torch.float32, 1e-4), (1, None, 3e-2))  # samples, precision (None: the network's own), tolerance
PRIME = 65537  # random values drawn for one tensor


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """A float64 copy in eval mode with random parameters and buffers.

    A fresh or trained network can hide an error: BN shifts of 0, layer scales of 1e-6, dead channels. Matrices are
    drawn with variance 1 / fan-in, which preserves the scale of activations; vectors are drawn from 0.5 to 1.5.
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
            # Drawing is slow, so large tensors repeat a prime number of draws, which never aligns with their rows.
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
        space: Its pruning space.
        masks: Filters that stay.
        call: Arguments of one forward pass; floating-point inputs are converted to the network's precision.
        small: The slimmed network, if it was made already.
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


@dataclass(frozen=True, eq=False)
class Proof:
    """A randomised copy of a network with random inputs and the tolerance of its outputs.

    The precision is float64 where the forward pass accepts it, else float32 (for a forward that creates float32
    constants), else the network's own precision (for a forward that casts).

    Attributes:
        model: The randomised copy.
        call: Arguments of one forward pass.
        tolerance: Largest accepted difference of outputs, relative to their scale.
        samples: Which tensors of the call have a batch dimension.
        in_training: Whether the branches that run in training only are compared too.
    """

    model: nn.Module
    call: Call
    tolerance: float
    samples: Samples
    in_training: bool = False

    @classmethod
    def of(cls, network: nn.Module, call: Call, *, samples: Samples | None = None, in_training: bool = False) -> Proof:
        """The proof of a network for the input shapes of one call.

        Args:
            network: The network.
            call: Arguments of one forward pass.
            samples: Which tensors of the call have a batch dimension; None: those with a first dimension of size 1.
            in_training: Compare the branches that run in training only too.
        """
        samples = Samples.single(call) if samples is None else samples
        noise = torch.Generator().manual_seed(2)

        def draw(x: object) -> object:
            if isinstance(x, Tensor) and x.is_floating_point():
                return torch.randn(x.shape, generator=noise, dtype=torch.float64).to(x.device)
            return x

        model = randomised(network)
        own = [*network.parameters(), *network.buffers()]
        proof = cls(model, call, TOLERANCE, samples, in_training)
        # Two samples make branches on values visible more often; a forward may be written for one sample only.
        for count, dtype, tolerance in ((2, torch.float64, TOLERANCE), (1, torch.float64, TOLERANCE), *COARSER):
            for tensor, original in zip([*model.parameters(), *model.buffers()], own, strict=True):
                if tensor.is_floating_point():
                    tensor.data = tensor.to(dtype or original.dtype)
            sample = as_precise(tree_map(draw, samples.repeated(call, count)), model)
            proof = cls(model, sample, tolerance, samples, in_training)
            try:
                with torch.no_grad(), default_dtype(dtype or torch.float32):
                    if all(len(out) == count for out in forward(model, sample) if count > 1):
                        break
            except Exception:  # an operator or constant needs another batch size or precision
                continue
        return proof

    def failing_groups(self, space: PruningSpace) -> dict[str, str]:
        """Groups for which the masked and the slimmed network differ, with the reason; empty if there are none."""

        def search(names: Sequence[str]) -> dict[str, str]:
            reason = self.failure(space, names)
            if not reason:
                return {}
            if len(names) == 1:
                return {names[0]: reason}
            middle = len(names) // 2
            failures = {**search(names[:middle]), **search(names[middle:])}
            return failures or dict.fromkeys(names, f"{reason}, together with other groups")

        return search([group.name for group in space.groups])

    def failure(self, space: PruningSpace, names: Sequence[str]) -> str:
        """Reason why pruning these groups together fails; empty if it does not.

        Two masks are compared: a random one with a different share for each group, and its complement. So every channel
        is pruned once and kept once. The cost is counted for the first.
        """
        first = Masks.random(space, keep=(0.3, 0.7), seed=1)
        complement = Masks({name: ~keep for name, keep in first.items()})
        with default_dtype(torch.float64 if self.tolerance == TOLERANCE else torch.float32):
            return self._failure(space, first, names, True) or self._failure(space, complement, names, False)

    def _failure(self, space: PruningSpace, masks: Masks, names: Sequence[str], count: bool) -> str:
        """Reason why these groups fail under these masks; empty if they do not.

        ``count``: compare the flops and parameters of the slimmed network with the closed form too.
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
            actual, expected = sum(p.numel() for p in small.parameters()), int(space.params_of(counts))
            if actual != expected:
                return f"{expected} parameters expected, {actual} counted after slimming"
            uniform = self.tolerance == TOLERANCE
            sample = self.samples.first(self.call)
            counted, expected = count_flops(small, sample, consume=uniform)[0], int(space.flops_of(counts))
            return "" if counted == expected else f"{expected} flops expected, {counted} counted after slimming"
        except Exception as error:  # any error that the user's forward raises on narrower tensors is the reason
            return f"fails when slimmed: {first_line(error)}"
