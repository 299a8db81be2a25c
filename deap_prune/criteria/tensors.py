"""Statistics that are read off the network: no data needed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from deap_prune.criteria.calibration import Calibration, Found, add, gathers, index_of
from deap_prune.structure.layers import describe_layer
from deap_prune.structure.space import FilterGroup, Member, PruningSpace

_SOURCES = {"weight": ("filter", "weight"), "scale": ("norm", "weight"), "shift": ("norm", "bias")}


@gathers("weight", "scale", "shift", "out_weight", "filter_flops", "noise")
def read_weights(calibration: Calibration, needs: frozenset[str]) -> Found:
    """Weights, scales, shifts; weights that read a filter; what a filter costs; noise."""
    found: Found = {}
    network, space = calibration.network, calibration.space
    for number, group in enumerate(space.groups):
        for need in _SOURCES.keys() & needs:
            role, name = _SOURCES[need]
            for member in group.layers(role):
                rows = filter_rows(network, member, name)
                if rows is not None:
                    add(found, group, need, rows if need == "weight" else rows.mean(dim=1))
        for member in group.layers("reader") if "out_weight" in needs else ():
            columns = reader_columns(network, member)
            if columns is not None:
                add(found, group, "out_weight", columns)
        if "filter_flops" in needs:
            add(found, group, "filter_flops", torch.full((group.size,), filter_flops(space, group, number)))
        if "noise" in needs:
            noise = np.random.default_rng([calibration.seed, number]).random(group.size)
            add(found, group, "noise", torch.from_numpy(noise))
    return found


def filter_rows(network: nn.Module, member: Member, name: str, tensor: Tensor | None = None) -> Tensor | None:
    """A layer's tensor as (filters of the group, everything else), or None where the layer does not have it."""
    layer = network.get_submodule(member.layer)
    spec = describe_layer(layer)
    value = getattr(layer, name, None) if tensor is None else tensor
    if spec is None or value is None or "out" not in spec.tensors.get(name, ()):
        return None
    rows = value.detach().movedim(spec.tensors[name].index("out"), 0)
    return rows[index_of(member, value)].flatten(1)


def reader_columns(network: nn.Module, member: Member) -> Tensor | None:
    """The weights of a reading layer that multiply each filter's channels, shape (filters, k)."""
    layer = network.get_submodule(member.layer)
    spec, weight = describe_layer(layer), getattr(layer, "weight", None)
    dims = spec.tensors.get("weight", ()) if spec is not None else ()
    if spec is None or weight is None or not {"in", "out"} <= set(dims):
        return None
    rows, columns = spec.out_channels // spec.blocks, spec.in_channels // spec.blocks
    table = weight.detach().movedim((dims.index("out"), dims.index("in")), (0, 1))
    table = table.reshape(spec.blocks, rows, columns, -1).transpose(1, 2).reshape(spec.in_channels, -1)
    return table[index_of(member, weight)].flatten(1)


def filter_flops(space: PruningSpace, group: FilterGroup, number: int) -> float:
    """Multiply-adds of the dense network that go with one filter of a group."""
    fewer = space.sizes.copy()
    fewer[number] -= group.blocks
    return float(space.flops - int(space.flops_of(fewer))) / group.blocks
