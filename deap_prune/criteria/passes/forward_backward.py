"""The main pass over the calibration data: forward, and one backward pass if a gradient is needed.

Hooks reduce tensors to a few numbers per channel at once, so memory does not grow with the number of images. Tables
with one row per image stop growing after ``layer_inputs.ROWS`` images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from deap_prune.criteria.passes.context import Calibration, StatisticsTable, add_statistic, gathers
from deap_prune.criteria.passes.layer_inputs import INPUT_STATISTICS, TAYLOR_STATISTICS, LayerInputs
from deap_prune.criteria.passes.layer_outputs import OUTPUT_STATISTICS, LayerOutputs
from deap_prune.criteria.passes.weights import filter_rows
from deap_prune.data.batches import count_samples
from deap_prune.errors import DataError
from deap_prune.progress import track
from deap_prune.structure.space import Member

PARAMETER_STATISTICS = frozenset({"weight_taylor", "gate_taylor", "gradient"})
BACKWARD_STATISTICS = TAYLOR_STATISTICS | PARAMETER_STATISTICS | {"gradient_square", "output_gradient_square"}


class Collector(Protocol):
    """Gathers statistics batch by batch, usually by hooks on layers."""

    def begin_batch(self, samples: int) -> None: ...  # noqa: D102
    def end_batch(self) -> None: ...  # noqa: D102
    def statistics(self) -> StatisticsTable: ...  # noqa: D102
    def remove_hooks(self) -> None: ...  # noqa: D102


@gathers(*INPUT_STATISTICS, *OUTPUT_STATISTICS, *PARAMETER_STATISTICS)
def forward_backward(calibration: Calibration, needs: frozenset[str]) -> StatisticsTable:
    """Statistics of layer inputs, layer outputs and parameter gradients, in one pass."""
    kinds: tuple[tuple[frozenset[str], Callable[..., Collector]], ...] = (
        (INPUT_STATISTICS, LayerInputs),
        (OUTPUT_STATISTICS, LayerOutputs),
        (PARAMETER_STATISTICS, ParameterGradients),
    )
    collectors = [kind(calibration, needs) for statistics, kind in kinds if statistics & needs]
    backward = bool(needs & BACKWARD_STATISTICS)
    try:
        batches = track(calibration.batches, "collecting statistics", shown=calibration.progress)
        for number, batch in enumerate(batches):
            for collector in collectors:
                collector.begin_batch(count_samples(batch))
            with torch.set_grad_enabled(backward):
                if backward:
                    _backward(calibration.loss_of(batch, number))
                else:
                    calibration.run(batch)
            for collector in collectors:
                collector.end_batch()
            calibration.network.zero_grad(set_to_none=True)
    finally:
        for collector in collectors:
            collector.remove_hooks()
    table: StatisticsTable = {}
    for collector in collectors:
        for group, by_statistic in collector.statistics().items():
            table.setdefault(group, {}).update(by_statistic)
    return table


def _backward(loss: Tensor) -> None:
    """The backward pass.

    Raises:
        DataError: If the loss has no gradient.
    """
    if not loss.requires_grad:
        raise DataError(
            "the loss has no gradient (detached, or computed outside torch?), which criteria on the loss need; return "
            "a loss that depends on the outputs, or choose other criteria"
        )
    loss.backward()


class ParameterGradients:
    """Gradients of the parameters after every batch; it needs no hooks.

    Args:
        calibration: Network and data.
        needs: Names of the statistics to gather.
    """

    def __init__(self, calibration: Calibration, needs: frozenset[str]) -> None:
        self.calibration, self.needs, self.samples = calibration, needs, 0
        self._taylor: dict[tuple[str, str, str], list[Tensor]] = {}  # (group, statistic, layer) -> (filters,) per batch

    def begin_batch(self, samples: int) -> None:
        """Prepare for a batch of ``samples`` images."""
        self.samples = samples

    def end_batch(self) -> None:
        """Read the gradients after the backward pass."""
        network, mean_gradients = self.calibration.network, self.calibration.gradients
        for group in self.calibration.space.groups:
            for need, role, names in (
                ("weight_taylor", "filter", ("weight",)),
                ("gate_taylor", "norm", ("weight", "bias")),
            ):
                for member in group.layers(role) if need in self.needs else ():
                    change = _first_order(network, member, names)
                    if change is not None:
                        self._taylor.setdefault((group.name, need, member.layer), []).append(change)
        if "gradient" in self.needs:
            share = self.samples / self.calibration.samples
            for name, p in network.named_parameters():
                if p.grad is not None:
                    mean_gradients[name] = mean_gradients.get(name, 0) + share * p.grad

    def statistics(self) -> StatisticsTable:
        """The statistics of all batches."""
        table: StatisticsTable = {}
        for (name, need, layer), changes in self._taylor.items():
            table.setdefault(name, {}).setdefault(need, {})[layer] = torch.stack(changes)
        if "gradient" in self.needs:
            add_weight_rows(self.calibration, "gradient", self.calibration.gradients, table)
        return table

    def remove_hooks(self) -> None:
        """Do nothing: there are no hooks."""


def add_weight_rows(
    calibration: Calibration, statistic: str, tensors: dict[str, Tensor], table: StatisticsTable
) -> None:
    """Add weight-shaped tensors to the table, as (filters, k), for every layer that has one.

    Args:
        calibration: Network and space.
        statistic: Key in the table.
        tensors: Values by parameter name, in the parameters' shapes.
        table: The table to extend.
    """
    for group in calibration.space.groups:
        for member in group.layers("filter"):
            tensor = tensors.get(f"{member.layer}.weight")
            rows = None if tensor is None else filter_rows(calibration.network, member, "weight", tensor)
            if rows is not None:
                add_statistic(table, group, statistic, rows, member)


def _first_order(network: nn.Module, member: Member, names: tuple[str, ...]) -> Tensor | None:
    """Sum over each filter of value x gradient, shape (filters,); None if the layer has no such parameters."""
    layer = network.get_submodule(member.layer)
    total: Tensor | None = None
    for name in names:
        value = getattr(layer, name, None)
        if isinstance(value, nn.Parameter) and value.grad is not None:
            rows = filter_rows(network, member, name, value.detach() * value.grad)
            if rows is not None:
                total = rows.sum(dim=1) if total is None else total + rows.sum(dim=1)
    return total
