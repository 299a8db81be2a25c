"""What the chosen criteria need, gathered at once: one pass over the calibration data, and more where a need asks."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from deap_prune.criteria.passes import derivatives, feature_maps, forward_backward, gating, second_moments, weights
from deap_prune.criteria.passes.context import Calibration, Found, passes_for
from deap_prune.data.batches import Data, Forward, Loss, cross_entropy, default_forward, to_batches
from deap_prune.structure.inputs import evaluating
from deap_prune.structure.slim import unwrap
from deap_prune.structure.space import FilterGroup, PruningSpace

__all__ = [
    "Loss",
    "Statistics",
    "collect",
    "derivatives",
    "feature_maps",
    "forward_backward",
    "gating",
    "preserved",
    "second_moments",
    "weights",
]


@dataclass(frozen=True, eq=False)
class Statistics:
    """For each group and statistic: one tensor per layer of the group that has it (see ``STATISTICS``)."""

    values: Found

    def of(self, group: FilterGroup, *needs: str) -> list[tuple[Tensor, ...]]:
        """The tensors of some statistics, layer by layer, in the group's order, where all of them apply."""
        columns = [self.values.get(group.name, {}).get(need, {}) for need in needs]
        layers = [layer for layer in columns[0] if all(layer in column for column in columns)]
        return [tuple(_precise(column[layer]) for column in columns) for layer in layers]


def _precise(tensor: Tensor) -> Tensor:
    """In fp32 what is of half precision: distances, for one, are not there for that on the CPU."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def collect(
    model: nn.Module,
    space: PruningSpace,
    calibration: Data | Tensor | None,
    *,
    needs: Collection[str],
    forward: Forward | None = None,
    loss: Loss = cross_entropy,
    labels: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> Statistics:
    """Gather statistics of the dense network, in eval mode, on the device where it is.

    Args:
        model: The network that was traced; it comes back unchanged.
        space: Its space.
        calibration: Batches; may be None if the needs are about weights alone, inputs alone if ``labels`` is False.
        needs: Keys of ``STATISTICS``.
        forward: Function of (model, batch) to (outputs, targets).
        loss: Function of (outputs, targets) to a scalar, the mean over the batch, for gradients.
        labels: False: targets and ``loss`` are not looked at; the target is the dense network's own output.
        seed: Of noise and samples.
        progress: Show a bar.

    Raises:
        DataError: If the calibration data is missing where it is needed, empty, or its labels outside the classes.
    """
    network, passes = unwrap(model), passes_for(frozenset(needs))
    batches: list[Any] = []
    if any(each.data for each, _ in passes):
        if not labels and isinstance(calibration, Tensor):
            calibration = (calibration, torch.zeros(len(calibration), dtype=torch.long))
        device = next(network.parameters()).device
        batches = to_batches(() if calibration is None else calibration, name="calibration", device=device)
        # torch 2.15's oneDNN corrupts memory in some channels-last weight gradients (strided 1x1, odd widths).
        batches = tree_map(lambda x: x.contiguous() if isinstance(x, Tensor) else x, batches)
    source = Calibration(network, space, batches, forward or default_forward, loss, labels, seed, progress)
    values: Found = {group.name: {} for group in space.groups}
    with preserved(network):
        for each, wanted in passes:
            for group, by_need in each.gather(source, wanted).items():
                values[group].update(by_need)
    return Statistics(values)


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Eval mode with gradients possible; modes, gradients, grad flags and memory formats come back as they were."""
    flags = [(p, p.requires_grad, p.grad, p.data) for p in model.parameters()]
    try:
        for p, _, _, data in flags:
            p.grad = None
            p.requires_grad_(p.is_floating_point())
            p.data = data.contiguous()
        with evaluating(model):
            yield
    finally:
        for p, flag, grad, data in flags:
            p.requires_grad_(flag)
            p.data = data
            p.grad = grad
