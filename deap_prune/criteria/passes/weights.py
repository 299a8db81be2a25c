"""Statistics that are read off the network: no data needed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from deap_prune.criteria.passes.context import Calibration, Found, add, gathers, index_of
from deap_prune.structure.layers import Axis, spec_of
from deap_prune.structure.space import FilterGroup, Member, PruningSpace

_SOURCES = {"weight": ("filter", "weight"), "scale": ("norm", "weight"), "shift": ("norm", "bias")}


@gathers("weight", "scale", "shift", "out_weight", "filter_flops", "noise", data=False)
def read_weights(calibration: Calibration, needs: frozenset[str]) -> Found:
    """Weights, scales, shifts; weights that read a filter; what a filter costs; noise."""
    found: Found = {}
    network, space = calibration.network, calibration.space
    device = next(network.parameters()).device
    for number, group in enumerate(space.groups):
        for need in _SOURCES.keys() & needs:
            role, name = _SOURCES[need]
            for member in group.layers(role):
                rows = filter_rows(network, member, name)
                if rows is not None:
                    add(found, group, need, rows if need == "weight" else rows.abs().mean(dim=1), member)
        for member in group.layers("reader") if "out_weight" in needs else ():
            columns = _rows(network, member, "weight", "in")
            if columns is not None:
                add(found, group, "out_weight", columns, member)
        if "filter_flops" in needs:
            add(
                found,
                group,
                "filter_flops",
                torch.full((group.size,), filter_flops(space, group, number), device=device),
            )
        if "noise" in needs:
            noise = np.random.default_rng([calibration.seed, number]).random(group.size)
            add(found, group, "noise", torch.from_numpy(noise).to(device))
    return found


def filter_rows(network: nn.Module, member: Member, name: str, tensor: Tensor | None = None) -> Tensor | None:
    """A layer's tensor as (filters of the group, everything else), or None where the layer does not have it."""
    return _rows(network, member, name, "out", tensor)


def _rows(network: nn.Module, member: Member, name: str, axis: Axis, tensor: Tensor | None = None) -> Tensor | None:
    """A member's part of a tensor whose channels, of one axis, come first: (filters, everything else)."""
    layer = network.get_submodule(member.layer)
    spec = spec_of(layer)
    value = getattr(layer, name, None) if tensor is None else tensor
    dims = spec.tensors.get(name, ())
    if value is None or axis not in dims:
        return None
    value = value.detach().movedim(dims.index(axis), 0)
    if "in" in dims and "out" in dims and axis != min(("in", "out"), key=dims.index):
        # The second of the two axes is counted from the start of a block: (columns, blocks x rows) by the column.
        rows = value.shape[1] // spec.blocks
        value = value.reshape(len(value), spec.blocks, rows, -1).transpose(0, 1)
        value = value.reshape(spec.blocks * value.shape[1], rows, -1)
    return value[index_of(member, value)].flatten(1)


def filter_flops(space: PruningSpace, group: FilterGroup, number: int) -> float:
    """Multiply-adds of the dense network that go with one filter of a group."""
    fewer = space.sizes.copy()
    fewer[number] -= group.blocks
    return float(space.flops - int(space.flops_of(fewer))) / group.blocks
