"""The objectives of an evaluator, applied: from a network's outputs to values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from deap_prune.data.batches import Forward, count_samples, samples_of
from deap_prune.data.draws import channels_last
from deap_prune.data.unchanged import unchanged
from deap_prune.fitness.objectives import TIMED, EvaluatedBatch, Objective, batch_values, reduced
from deap_prune.fitness.settings import Counters
from deap_prune.precision import full_precision
from deap_prune.randomness import same_draws
from deap_prune.structure.masks import Masks
from deap_prune.structure.space import PruningSpace

Values = tuple[float, ...]
BatchValues = dict[str, Tensor]


class ObjectiveSet:
    """The objectives of an evaluator.

    Args:
        objectives: In the order of the fitness values.
        space: The space that cost objectives count in.
        network: The dense network.
        forward: Function of (model, batch) to (outputs, targets).
        seed: Seed of what they draw.
    """

    def __init__(
        self, objectives: Sequence[Objective], space: PruningSpace, network: nn.Module, forward: Forward, seed: int
    ) -> None:
        self._objectives, self._space = tuple(objectives), space
        self._network, self._forward, self._seed = network, forward, seed

    @torch.no_grad()
    def dense_outputs(self, batches: list[Any]) -> list[Any]:
        """The dense network's outputs for each batch; None for each if no objective needs them."""
        if not any(o.needs_dense for o in self._objectives):
            return [None] * len(batches)
        with full_precision(), same_draws(self._seed):
            return [self._forward(self._network, batch)[0] for batch in batches]

    def costs(self, masks: Masks) -> list[float]:
        """The objectives that follow from the masks alone, as minimised values."""
        return [-o.weight * o.of_masks(self._space, masks) for o in self._objectives if o.of_masks]

    def of_batch(self, batch: EvaluatedBatch) -> BatchValues:
        """The data objectives' values of a batch by name, each of shape (samples, ...)."""
        return {o.name: batch_values(o, batch) for o in self._objectives if o.batch is not None}

    def check(self, outputs: Any, targets: Any) -> None:
        """Apply the objectives to the dense network's outputs, to raise their errors early.

        Objectives that run the network again are left out.
        """
        for objective in self._objectives:
            if objective.batch is not None and not objective.needs_network:
                dense = outputs if objective.needs_dense else None
                batch = (outputs, targets, dense, lambda change: outputs)
                unchanged(partial(batch_values, objective), batch, name=f"objective '{objective.name}'")

    @torch.no_grad()
    def timed(self, network: nn.Module, batches: Sequence[Any], device: torch.device) -> dict[str, float]:
        """The objectives that are measured on the slimmed network itself (latency), by name."""
        measured = [o for o in self._objectives if o.of_network]
        run = partial(self._forward, network, samples_of(batches[0], slice(TIMED))) if measured else None
        return {o.name: o.of_network(run, device) for o in measured if o.of_network and run}

    def values(self, masks: Masks, batches: Sequence[BatchValues], timed: Mapping[str, float] | None = None) -> Values:
        """The objectives' values, in order.

        Args:
            masks: Masks that the cost objectives count.
            batches: Results of :meth:`of_batch`.
            timed: Result of :meth:`timed`.
        """
        values = []
        for objective in self._objectives:
            if objective.of_masks is not None:
                value = objective.of_masks(self._space, masks)
            elif timed and objective.name in timed:
                value = timed[objective.name]
            else:
                value = reduced(objective, (batch[objective.name] for batch in batches))
            values.append(_finite(objective, value))
        return tuple(values)


def forwarded(run: Callable[[Any], tuple[Any, Any]], batch: Any, dense: Any, counters: Counters) -> EvaluatedBatch:
    """Forward a batch, and count its samples.

    Args:
        run: Function of a batch to (outputs, targets).
        batch: The batch.
        dense: The dense network's outputs for it, or None.
        counters: Counts the samples, also of later reruns.
    """

    def rerun(change: Callable[[Tensor], Tensor]) -> Any:
        counters.samples += count_samples(batch)
        return run(channels_last(tree_map(lambda x: change(x) if isinstance(x, Tensor) else x, batch)))[0]

    counters.samples += count_samples(batch)
    return (*run(batch), dense, rerun)


def _finite(objective: Objective, value: float) -> float:
    """A plain number; the objective's worst value for NaN and infinity."""
    value = float(value)
    if value == value and abs(value) != float("inf"):
        return value
    warnings.warn(f"{objective.name} was {value}; counted as the worst value, {objective.worst:g}", stacklevel=5)
    return objective.worst
