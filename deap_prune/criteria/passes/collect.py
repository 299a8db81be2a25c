"""Gathers the statistics that the chosen criteria need, with as few passes as possible."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from deap_prune.criteria.passes.context import Calibration, Pass, StatisticsTable
from deap_prune.criteria.passes.derivatives import flow_gradient, hessian_gradient
from deap_prune.criteria.passes.feature_maps import contributions, feature_maps
from deap_prune.criteria.passes.forward_backward import forward_backward
from deap_prune.criteria.passes.gating import close_filters, train_gates
from deap_prune.criteria.passes.second_moments import second_moments
from deap_prune.criteria.passes.weights import weight_statistics
from deap_prune.data.batches import Data, Forward, Loss, cross_entropy, default_forward, to_batches
from deap_prune.progress import Shown
from deap_prune.structure.inputs import evaluating
from deap_prune.structure.slim import unwrap
from deap_prune.structure.space import FilterGroup, PruningSpace

PASSES: tuple[Pass, ...] = (
    weight_statistics,
    forward_backward,
    hessian_gradient,
    flow_gradient,
    feature_maps,
    contributions,
    close_filters,
    train_gates,
    second_moments,
)


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of a network.

    Attributes:
        values: Group name -> statistic -> layer name (or the group's name) -> tensor; shapes as in ``STATISTICS``.
    """

    values: StatisticsTable

    def of(self, group: FilterGroup, *needs: str) -> list[tuple[Tensor, ...]]:
        """The tensors of several statistics, for each layer of a group that has all of them.

        Args:
            group: A group of the pruning space.
            *needs: Keys of ``STATISTICS``.
        """
        columns = [self.values.get(group.name, {}).get(need, {}) for need in needs]
        layers = [layer for layer in columns[0] if all(layer in column for column in columns)]
        return [tuple(_single_precision(column[layer]) for column in columns) for layer in layers]


def _single_precision(tensor: Tensor) -> Tensor:
    """Half precision as fp32: torch does not implement ``cdist``, for example, in half precision on the CPU."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def passes_for(needs: frozenset[str]) -> list[tuple[Pass, frozenset[str]]]:
    """The passes that gather the needed statistics, in the order to run them, each with its part of the statistics.

    Args:
        needs: Keys of ``STATISTICS``. Statistics that a chosen pass needs before it are added.
    """
    needs = needs.union(*(one.after for one in PASSES if one.statistics & needs))
    chosen = [(one, one.statistics & needs) for one in PASSES if one.statistics & needs]
    return sorted(chosen, key=lambda entry: len(entry[0].after))


def collect(
    model: nn.Module,
    space: PruningSpace,
    calibration: Data | None,
    *,
    needs: Collection[str],
    forward: Forward | None = None,
    loss: Loss = cross_entropy,
    labels: bool = True,
    seed: int = 0,
    progress: Shown = False,
) -> Statistics:
    """Gather statistics of the dense network, in eval mode, on the network's device.

    Args:
        model: The network that was traced; it is not changed.
        space: Its pruning space.
        calibration: Batches. May be None if all needs concern weights alone; inputs alone are enough if not ``labels``.
        needs: Keys of ``STATISTICS``.
        forward: Function of (model, batch) to (outputs, targets).
        loss: Function of (outputs, targets) to a scalar, the mean over the batch, for gradients.
        labels: If False, targets and ``loss`` are ignored; the target is the dense network's own output.
        seed: Seed of noise and random places.
        progress: Show progress bars.

    Raises:
        DataError: If the calibration data is needed and missing or empty, or its labels are outside the classes.
    """
    network, passes = unwrap(model), passes_for(frozenset(needs))
    batches: list[Any] = []
    if any(one.data for one, _ in passes):
        device = next(network.parameters()).device
        batches = to_batches(() if calibration is None else calibration, name="calibration", device=device)
        # torch 2.15's oneDNN corrupts memory in some channels-last weight gradients (strided 1x1, odd widths).
        batches = tree_map(lambda x: x.contiguous() if isinstance(x, Tensor) else x, batches)
    source = Calibration(network, space, batches, forward or default_forward, loss, labels, seed, progress)
    values: StatisticsTable = {group.name: {} for group in space.groups}
    with preserved(network):
        for one, statistics in passes:
            for group, by_statistic in one.gather(source, statistics).items():
                values[group].update(by_statistic)
    return Statistics(values)


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Eval mode with gradients enabled; restores modes, gradients, gradient flags and memory formats afterwards."""
    states = [(p, p.requires_grad, p.grad, p.data) for p in model.parameters()]
    try:
        for p, _, _, data in states:
            p.grad = None
            p.requires_grad_(p.is_floating_point())
            p.data = data.contiguous()
        with evaluating(model):
            yield
    finally:
        for p, flag, grad, data in states:
            p.requires_grad_(flag)
            p.data = data
            p.grad = grad
