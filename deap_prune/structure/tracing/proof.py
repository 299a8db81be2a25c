"""Proof of a pruning space: on a randomised copy, the masked and the slimmed network must give the same outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from deap_prune.structure.inputs import Call, as_precise, first_line, forward, same_draws, training_branches
from deap_prune.structure.masking import masked
from deap_prune.structure.masks import Masks
from deap_prune.structure.slim import narrowed_copy
from deap_prune.structure.space import PruningSpace
from deap_prune.structure.tracing.depthwise import DepthwiseByTaps
from deap_prune.structure.tracing.dispatch_count import dispatch_count
from deap_prune.structure.tracing.fvcore_count import count_flops, counts_alike, default_dtype
from deap_prune.structure.tracing.randomised import LEVELS, RANDOM_CALLS, randomised
from deap_prune.structure.tracing.samples import Samples
from deap_prune.structure.tracing.zeroed_inputs import zeroed_inputs

__all__ = ["Failure", "Proof", "difference", "randomised"]

TOLERANCE = 1e-9  # float64, relative to the output's scale
DRAWS = (0, 1)  # of masks: a random one and its complement
COARSER = ((1, torch.float32, 1e-4), (1, None, 3e-2))  # samples, precision (None: the network's own), tolerance


def difference(
    model: nn.Module,
    space: PruningSpace,
    masks: Masks,
    call: Call,
    *,
    small: nn.Module | None = None,
    in_training: bool = False,
    quick: bool = False,
) -> float:
    """Largest difference between the masked and the slimmed network's outputs, relative to the outputs' scale.

    Args:
        model: The network.
        space: Its pruning space.
        masks: Filters that stay.
        call: Arguments of one forward pass; floating-point inputs are converted to the network's precision.
        small: The slimmed network, if it was made already.
        in_training: Run the branches that run in training only (auxiliary heads).
        quick: Zero the inputs of torch's own layers under the mask, which has the effect of zero weights, and run
            depthwise convolutions by taps.
    """
    small = narrowed_copy(model, space, masks) if small is None else small
    mode = training_branches if in_training else nullcontext
    call = as_precise(call, model)
    with torch.no_grad():
        with mode(small), same_draws(), _shortcuts(quick):
            narrow = forward(small, call)
        zeroed = zeroed_inputs(model, space, masks) if quick else nullcontext(space)
        with zeroed as left, masked(model, left, masks), mode(model), same_draws(), _shortcuts(quick):
            full = forward(model, call)
    if len(narrow) != len(full):
        return math.inf
    return max((_gap(a, b) for a, b in zip(narrow, full, strict=True)), default=0.0)


def _shortcuts(quick: bool) -> AbstractContextManager[Any]:
    return DepthwiseByTaps() if quick else nullcontext()


def _gap(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the scale of ``b``; infinite if shapes or non-finite values differ."""
    if a.shape != b.shape:
        return math.inf
    if not a.numel():
        return 0.0
    gap = float((a.double() - b.double()).abs().max() / (b.double().abs().max() + 1e-12))
    if math.isfinite(gap):
        return gap
    finite = torch.isfinite(b)
    if not bool(finite.any()) or not torch.equal(a[~finite], b[~finite]):  # not equal where NaN
        return math.inf
    return float((a[finite].double() - b[finite].double()).abs().max() / (b[finite].double().abs().max() + 1e-12))


@dataclass(frozen=True)
class Failure:
    """Why a proof fails.

    Attributes:
        reason: In words.
        of_cost: Whether the outputs agree and the cost does not.
        draw: Which masks fail, of ``DRAWS``.
    """

    reason: str
    of_cost: bool = False
    draw: int = 0


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
        refused: Groups that failed alone, by :attr:`FilterGroup.key`, with reasons.
    """

    model: nn.Module
    call: Call
    tolerance: float
    samples: Samples
    in_training: bool = False
    refused: dict[Hashable, str] = field(default_factory=dict, repr=False)
    _comparisons: dict[str, bool] = field(default_factory=dict, repr=False)

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
        fallback = None
        for level in range(LEVELS):
            model = randomised(network, level=level)
            for draw in RANDOM_CALLS:
                proof, finite = cls._settled(network, model, draw, call, samples, in_training)
                fallback = proof if fallback is None else fallback
                if finite:
                    return proof
        return cast(Proof, fallback)

    @classmethod
    def _settled(
        cls,
        network: nn.Module,
        model: nn.Module,
        draw: Callable[[Call], Call],
        call: Call,
        samples: Samples,
        in_training: bool,
    ) -> tuple[Proof, bool]:
        """The proof in the finest precision that works, and whether all its outputs are finite."""
        own = [*network.parameters(), *network.buffers()]
        proof = cls(model, call, TOLERANCE, samples, in_training)
        # Two samples make branches on values visible more often; a forward may be written for one sample only.
        for count, dtype, tolerance in ((2, torch.float64, TOLERANCE), (1, torch.float64, TOLERANCE), *COARSER):
            for tensor, original in zip([*model.parameters(), *model.buffers()], own, strict=True):
                if tensor.is_floating_point():
                    tensor.data = tensor.to(dtype or original.dtype)
            proof = cls(model, as_precise(draw(samples.repeated(call, count)), model), tolerance, samples, in_training)
            try:
                with torch.no_grad(), default_dtype(dtype or torch.float32), DepthwiseByTaps():
                    outputs = forward(model, proof.call)
                    if count == 1 or all(len(out) == count * samples.rows or len(out) == count for out in outputs):
                        return proof, all(bool(torch.isfinite(out).all()) for out in outputs)
            except Exception:  # an operator or constant needs another batch size or precision
                continue
        return proof, True

    def failure(
        self, space: PruningSpace, names: Sequence[str], *, counted: bool = True, draws: Sequence[int] = DRAWS
    ) -> Failure | None:
        """Why pruning these groups together fails; None if it does not.

        Two masks are compared: a random one with a different share for each group, and its complement. So every channel
        is pruned once and kept once. The complement is compared on one sample.

        Args:
            space: The pruning space.
            names: Names of the groups.
            counted: Compare the flops and parameters of the first mask with the closed form too.
            draws: The masks to compare.
        """
        first = Masks.random(space, keep=(0.3, 0.7), seed=1)
        complement = Masks({name: ~keep for name, keep in first.items()})
        with default_dtype(torch.float64 if self.tolerance == TOLERANCE else torch.float32):
            for draw in draws:
                masks = (first, complement)[draw]
                chosen = Masks({name: masks[name] for name in names})
                try:
                    failure = self._failure(space, chosen, self.one if draw else self.call, counted and not draw)
                except Exception as error:  # the user's forward may raise anything on narrower tensors
                    failure = Failure(f"fails when slimmed: {first_line(error)}")
                if failure is not None:
                    return replace(failure, draw=draw)
        return None

    def _failure(self, space: PruningSpace, masks: Masks, call: Call, counted: bool) -> Failure | None:
        small = narrowed_copy(self.model, space, masks, shared=True)
        modes = (False, True) if self.in_training else (False,)
        gap = max(difference(self.model, space, masks, call, small=small, in_training=m, quick=True) for m in modes)
        if gap > self.tolerance:
            return Failure(self._described(gap))
        if not counted:
            return None
        counts = space.kept_counts(masks)
        actual, expected = sum(p.numel() for p in small.parameters()), int(space.params_of(counts))
        if actual != expected:
            return Failure(f"{expected} parameters expected, {actual} counted after slimming", of_cost=True)
        actual, expected = self._count(small, space.flops), int(space.flops_of(counts))
        if actual == expected or self.cost_varies(space.flops):
            return None
        return Failure(f"{expected} flops expected, {actual} counted after slimming", of_cost=True)

    def _count(self, small: nn.Module, dense: int) -> int:
        """FLOPs of a slimmed network, at the dispatcher (much faster than fvcore) where that gives the dense cost."""
        if "dispatched" not in self._comparisons:
            self._comparisons["dispatched"] = counts_alike(self.model, self.one, dense)
        if self._comparisons["dispatched"]:
            return dispatch_count(small, self.one)[0]
        return count_flops(small, self.one)[0]

    @property
    def one(self) -> Call:
        """The call with one sample."""
        return self.samples.first(self.call)

    def cost_varies(self, flops: int) -> bool:
        """Whether the cost of the dense network depends on values (the number of detections, for example).

        Args:
            flops: FLOPs of the network with its own weights, for the example inputs.
        """
        if "varies" not in self._comparisons:
            self._comparisons["varies"] = count_flops(self.model, self.one)[0] != flops
        return self._comparisons["varies"]

    @property
    def cost_varies_known(self) -> bool:
        """Whether a comparison of costs has shown that the cost depends on values."""
        return self._comparisons.get("varies", False)

    def _described(self, gap: float) -> str:
        if math.isfinite(gap):
            return f"masked and slimmed outputs differ (by {gap:.1e})"
        with torch.no_grad():
            outputs = forward(self.model, self.call)
        if not all(bool(torch.isfinite(out).all()) for out in outputs):
            return "outputs are not finite on random weights and inputs, so nothing can be compared"
        return "masked and slimmed outputs have different shapes, or one of them is not finite"
