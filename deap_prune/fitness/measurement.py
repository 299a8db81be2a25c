"""From a network's outputs to the values of the objectives."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from deap_prune.data.batches import Forward, count_samples, samples_of
from deap_prune.data.draws import channels_last, full_precision
from deap_prune.fitness.objectives import TIMED, Objective, Part, judge, values_of
from deap_prune.fitness.settings import Counters
from deap_prune.structure.masks import Masks
from deap_prune.structure.space import PruningSpace

Estimate = Callable[[Masks], float]
Values = tuple[float, ...]
Found = dict[str, Tensor]


class Verdict:
    """The objectives, applied.

    Args:
        objectives: In the order of the values.
        space: What the cost objectives count in.
        network: The dense network.
        forward: Function of (model, batch) to (outputs, targets).
    """

    def __init__(
        self, objectives: Sequence[Objective], space: PruningSpace, network: nn.Module, forward: Forward
    ) -> None:
        self._objectives, self._space = tuple(objectives), space
        self._network, self._forward = network, forward

    @torch.no_grad()
    def dense_outputs(self, batches: list[Any]) -> list[Any]:
        """The dense network's outputs, a batch each; None where no objective looks at them."""
        if not any(o.needs_dense for o in self._objectives):
            return [None] * len(batches)
        with full_precision():
            return [self._forward(self._network, batch)[0] for batch in batches]

    def costs(self, masks: Masks) -> list[float]:
        """Objectives that follow from the masks alone, minimised."""
        return [-o.weight * o.of_masks(self._space, masks) for o in self._objectives if o.of_masks]

    def of_batch(self, part: Part) -> Found:
        """The data objectives' values of a batch, by name; each shape (samples, ...)."""
        return {o.name: values_of(o, part) for o in self._objectives if o.batch is not None}

    def check(self, outputs: Any, targets: Any) -> None:
        """Judge the dense network by what looks at nothing but outputs and targets, for the errors that come of it."""
        for objective in self._objectives:
            if objective.batch is not None and not objective.needs_network:
                dense = outputs if objective.needs_dense else None
                values_of(objective, (outputs, targets, dense, lambda change: outputs))

    def losses(self, found: Found) -> NDArray[np.float64]:
        """The one data objective of a race, for each sample of a batch, minimised, shape (samples,)."""
        objective = next(o for o in self._objectives if o.batch is not None)
        values = found[objective.name]
        return -objective.weight * values.double().reshape(len(values), -1).mean(1).cpu().numpy()

    @torch.no_grad()
    def measured(self, network: nn.Module, batches: Sequence[Any], device: torch.device) -> dict[str, float]:
        """What is measured on a slimmed network itself (its latency), by name."""
        found = [o for o in self._objectives if o.of_network]
        run = partial(self._forward, network, samples_of(batches[0], slice(TIMED))) if found else None
        return {o.name: o.of_network(run, device) for o in found if o.of_network and run}

    def values(
        self,
        masks: Masks,
        batches: Sequence[Found],
        estimate: float | None = None,
        measured: Mapping[str, float] | None = None,
    ) -> Values:
        """The objectives' values, in order.

        Args:
            masks: What the cost objectives count.
            batches: What :meth:`of_batch` gave for each.
            estimate: A race's, minimised; takes the place of what the data say.
            measured: Of the network itself, by name.
        """
        values = []
        for objective in self._objectives:
            if objective.of_masks is not None:
                value = objective.of_masks(self._space, masks)
            elif measured and objective.name in measured:
                value = measured[objective.name]
            elif estimate is not None:
                value = -objective.weight * estimate
            else:
                value = judge(objective, (found[objective.name] for found in batches))
            values.append(_finite(objective, value))
        return tuple(values)


def part_of(run: Callable[[Any], tuple[Any, Any]], batch: Any, dense: Any, counters: Counters) -> Part:
    """A batch forwarded, with the way to forward it again, changed; all of it counted."""

    def rerun(change: Callable[[Tensor], Tensor]) -> Any:
        counters.samples += count_samples(batch)
        return run(channels_last(tree_map(lambda x: change(x) if isinstance(x, Tensor) else x, batch)))[0]

    counters.samples += count_samples(batch)
    return (*run(batch), dense, rerun)


def _finite(objective: Objective, value: float) -> float:
    """A plain number; NaN and infinity become the objective's worst value."""
    value = float(value)
    if value == value and abs(value) != float("inf"):
        return value
    warnings.warn(f"{objective.name} was {value}; counted as the worst value, {objective.worst:g}", stacklevel=5)
    return objective.worst
