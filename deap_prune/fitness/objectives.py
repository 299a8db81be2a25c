"""What a pruned network is judged by. Directions live here, in the registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deap_prune.registry import Registry
from deap_prune.structure.masks import Masks
from deap_prune.structure.space import PruningSpace
from deap_prune.structure.space import flops as count_flops
from deap_prune.structure.space import params as count_params

PerSample = Callable[[Any, Any, Any], Tensor]
OfMasks = Callable[[PruningSpace, Masks], float]


def _mean(total: Tensor, samples: int) -> float:
    return float(total.mean()) / samples  # over positions too, where there are any (segmentation)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A named objective.

    Attributes:
        maximise: Direction.
        worst: What a NaN or infinite value becomes.
        batch: Function of (outputs, targets, dense_outputs) to values of shape (samples, ...); None for a cost.
        finish: Function of (sum over all samples, number of samples) to the value.
        of_masks: For a cost: function of (space, masks).
        needs_dense: ``batch`` looks at the dense network's outputs.
    """

    name: str
    maximise: bool
    worst: float
    summary: str
    reference: str
    batch: PerSample | None = None
    finish: Callable[[Tensor, int], float] = _mean
    of_masks: OfMasks | None = None
    needs_dense: bool = False

    @property
    def weight(self) -> float:
        """DEAP's fitness weight: +1 to maximise, -1 to minimise."""
        return 1.0 if self.maximise else -1.0


OBJECTIVES: Registry[Objective] = Registry("objective", "objectives")


def register_objective(
    name: str,
    *,
    maximise: bool,
    worst: float,
    reference: str = "",
    cost: bool = False,
    needs_dense: bool = False,
    finish: Callable[[Tensor, int], float] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add an objective: decorate ``f(outputs, targets, dense_outputs) -> (samples, ...)``, or with ``cost=True``
    ``f(space, masks) -> float``.

    Args:
        name: Registry name.
        maximise: Direction.
        worst: Finite value that a NaN or infinite result becomes.
        reference: Paper.
        cost: The objective follows from the masks alone.
        needs_dense: The dense network's outputs are wanted (else ``dense_outputs`` is None).
        finish: Function of (sum over samples, number of samples) to the value; the mean if left out.

    Raises:
        RegistryError: If the name is taken.
    """  # noqa: D205

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        summary = (function.__doc__ or "").strip().split("\n")[0]
        OBJECTIVES.add(
            Objective(
                name=name,
                maximise=maximise,
                worst=worst,
                summary=summary,
                reference=reference,
                batch=None if cost else function,
                of_masks=function if cost else None,
                needs_dense=needs_dense,
                **({"finish": finish} if finish else {}),
            )
        )
        return function

    return decorate


@register_objective("accuracy", maximise=True, worst=0.0)
def accuracy(outputs: Tensor, targets: Tensor, dense_outputs: None) -> Tensor:
    """Share of samples whose largest output is the label (top-1), in [0, 1]."""
    correct = (outputs.argmax(dim=1) == targets).float()
    return torch.where(
        outputs.isfinite().flatten(1).all(dim=1).view(-1, *[1] * (correct.dim() - 1)), correct, torch.nan
    )


@register_objective("loss", maximise=False, worst=1e6)
def loss(outputs: Tensor, targets: Tensor, dense_outputs: None) -> Tensor:
    """Mean cross-entropy, in nats."""
    return F.cross_entropy(outputs.float(), targets, reduction="none")


@register_objective(
    "agreement", maximise=False, worst=1e6, needs_dense=True, reference="Hinton et al. 2015, arXiv 1503.02531"
)
def agreement(outputs: Tensor, targets: Tensor, dense_outputs: Tensor) -> Tensor:
    """Mean KL divergence from the dense network's outputs to the pruned one's, in nats; needs no labels."""
    dense, pruned = dense_outputs.float().log_softmax(dim=1), outputs.float().log_softmax(dim=1)
    return F.kl_div(pruned, dense, log_target=True, reduction="none").sum(dim=1)


@register_objective(
    "flops", maximise=False, worst=1.0, cost=True, reference="fvcore's convention: 1 multiply-add = 1 flop"
)
def flops(space: PruningSpace, masks: Masks) -> float:
    """Kept share of the dense network's multiply-adds, in [0, 1]."""
    return count_flops(space, masks) / space.flops


@register_objective("params", maximise=False, worst=1.0, cost=True)
def params(space: PruningSpace, masks: Masks) -> float:
    """Kept share of the dense network's parameters, in [0, 1]."""
    return count_params(space, masks) / space.params


@torch.no_grad()
def judge(objective: Objective, parts: list[tuple[Any, Any, Any]]) -> float:
    """Value of a data objective over (outputs, targets, dense_outputs) of all batches."""
    total, samples = None, 0
    for part in parts:
        values = objective.batch(*part) if objective.batch else torch.zeros(1)
        summed = values.double().sum(dim=0)
        total = summed if total is None else total + summed
        samples += len(values)
    return objective.finish(total if total is not None else torch.zeros(()), samples)
