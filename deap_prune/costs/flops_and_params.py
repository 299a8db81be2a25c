"""The costs that follow from the trace alone: multiply-adds, parameters, memory of activations; and latency."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deap_prune.costs.registry import CostFunction, register_cost
from deap_prune.errors import ConfigError

if TYPE_CHECKING:
    from deap_prune.structure.space import PruningSpace


@register_cost("flops", reference="fvcore's convention: 1 multiply-add = 1 flop")
def flops(space: PruningSpace) -> CostFunction:
    """Multiply-adds of one sample."""
    return space.flops_of


@register_cost("params")
def params(space: PruningSpace) -> CostFunction:
    """Parameters."""
    return space.params_of


@register_cost("memory", unit="bytes")
def memory(space: PruningSpace) -> CostFunction:
    """Peak of the activations that are in memory at once, in bytes a sample.

    Every buffer lives from the step that fills it to the last one that reads it, in the order of the traced pass. The
    network's inputs and outputs live to the end. Views and in-place results share their buffer. A batch takes as many
    times the bytes as it has samples; weights, and what a layer needs while it runs, are not part of it.
    """
    if space.activations is None:
        raise ConfigError("this space does not know the activations' shapes; make it with dp.trace")
    return space.activations.peak


@register_cost("latency", monotone=False, unit="ms")
def latency(space: PruningSpace) -> CostFunction:
    """Milliseconds of one batch, predicted from a latency table."""
    if space.latency_of is None:
        raise ConfigError(
            "a latency budget needs a latency table: make one with 'deap-prune latency CONFIG --out table.json' (or "
            "dp.latency_table), and give latency_table='table.json'"
        )
    return space.latency_of
