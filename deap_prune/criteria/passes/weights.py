"""Statistics of the parameters: no data needed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from deap_prune.criteria.passes.context import Calibration, StatisticsTable, add_statistic, gathers, positions_of
from deap_prune.structure.layers import Axis, spec_of
from deap_prune.structure.space import FilterGroup, Member, PruningSpace

_SOURCES = {"weight": ("filter", "weight"), "scale": ("norm", "weight"), "shift": ("norm", "bias")}


@gathers("weight", "scale", "shift", "out_weight", "filter_flops", "noise", data=False)
def weight_statistics(calibration: Calibration, needs: frozenset[str]) -> StatisticsTable:
    """Weights, scales and shifts of the filters, weights of the next layers, cost of a filter, and noise."""
    table: StatisticsTable = {}
    network, space = calibration.network, calibration.space
    device = next(network.parameters()).device
    for number, group in enumerate(space.groups):
        for need in _SOURCES.keys() & needs:
            role, name = _SOURCES[need]
            for member in group.layers(role):
                rows = filter_rows(network, member, name)
                if rows is not None:
                    values = rows if need == "weight" else rows.abs().mean(dim=1)
                    add_statistic(table, group, need, values, member)
        for member in group.layers("reader") if "out_weight" in needs else ():
            columns = _rows(network, member, "weight", "in")
            if columns is not None:
                add_statistic(table, group, "out_weight", columns, member)
        if "filter_flops" in needs:
            flops = torch.full((group.size,), filter_flops(space, group, number), device=device)
            add_statistic(table, group, "filter_flops", flops)
        if "noise" in needs:
            noise = np.random.default_rng([calibration.seed, number]).random(group.size)
            add_statistic(table, group, "noise", torch.from_numpy(noise).to(device))
    return table


def filter_rows(network: nn.Module, member: Member, name: str, tensor: Tensor | None = None) -> Tensor | None:
    """A layer's tensor as (filters of the group, k), or None if the layer has no such tensor.

    Args:
        network: The network that contains the layer.
        member: The layer, and the channels of each filter in it.
        name: Name of the layer's parameter.
        tensor: Values in the parameter's shape to use in its place, such as a gradient.
    """
    return _rows(network, member, name, "out", tensor)


def _rows(network: nn.Module, member: Member, name: str, axis: Axis, tensor: Tensor | None = None) -> Tensor | None:
    """Like :func:`filter_rows`, for the filters along either channel axis of the parameter."""
    layer = network.get_submodule(member.layer)
    spec = spec_of(layer)
    value = getattr(layer, name, None) if tensor is None else tensor
    dims = spec.tensors.get(name, ())
    if value is None or axis not in dims:
        return None
    value = value.detach().movedim(dims.index(axis), 0)
    if "in" in dims and "out" in dims and axis != min(("in", "out"), key=dims.index):
        # The second channel axis counts from the start of a block. Make it count over all blocks: (channels, rows, k).
        rows = value.shape[1] // spec.blocks
        value = value.reshape(len(value), spec.blocks, rows, -1).transpose(0, 1)
        value = value.reshape(spec.blocks * value.shape[1], rows, -1)
    return value[positions_of(member, value)].flatten(1)


def filter_flops(space: PruningSpace, group: FilterGroup, number: int) -> float:
    """Multiply-adds that pruning one filter of a group saves in the dense network.

    Args:
        space: The pruning space.
        group: A group of the space.
        number: The group's index in the space.
    """
    kept = space.sizes.copy()
    kept[number] -= group.blocks
    return float(space.flops - int(space.flops_of(kept))) / group.blocks
