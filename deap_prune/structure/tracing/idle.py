"""Channels of layers that did not run, from their siblings that did (norms of other domains, skipped blocks)."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence

import numpy as np
from torch import nn

from deap_prune.structure.layers import LayerSpec, describe_layer
from deap_prune.structure.space import Ids, LayerChannels


def idle_layers(layers: Iterable[str], ran: Container[str], used: Iterable[str]) -> list[str]:
    """Layers that have not run, and whose parameters nothing else has used (as attention does).

    Layers inside a known layer belong to it.

    Args:
        layers: Names of all known layers.
        ran: Names of those that ran.
        used: Names of the parameters that were used outside of layers.
    """
    names = set(layers)
    inside = {name for name in names if any(parent in names for parent in _parents(name))}
    others = inside | {name.rpartition(".")[0] for name in used}
    return [name for name in layers if name not in ran and name not in others]


def _parents(name: str) -> list[str]:
    """The names of the modules around a module: ``a`` and ``a.b`` for ``a.b.c``."""
    parts = name.split(".")
    return [".".join(parts[:k]) for k in range(1, len(parts))]


def idle_channels(network: nn.Module, layers: Iterable[LayerChannels], idle: Sequence[str]) -> list[LayerChannels]:
    """The channels of idle layers, where all siblings that ran agree on them; elsewhere dense (-1).

    A sibling has the same type and widths, and the same place in another entry of a ``ModuleList`` or ``ModuleDict``.
    For norms it may be any other child of the same module.

    Args:
        network: The network.
        layers: The layers that ran.
        idle: Names of the layers that did not run.

    Returns:
        One entry for each idle layer with a sibling that ran.
    """
    ran = {entry.name: entry for entry in layers if entry.dim is None}
    entries = []
    for name in idle:
        layer = network.get_submodule(name)
        spec = describe_layer(layer)
        if spec is None:
            continue
        siblings = [ran[s] for s in _siblings(network, name, spec) if s in ran and _alike(layer, spec, network, s)]
        inputs, outputs = _common([s.inputs for s in siblings]), _common([s.outputs for s in siblings])
        if not siblings:
            continue
        inputs = np.full(spec.in_channels, -1) if inputs is None else inputs
        outputs = np.full(spec.out_channels, -1) if outputs is None else outputs
        entries.append(LayerChannels(name, inputs, outputs))
    return entries


def _siblings(network: nn.Module, name: str, spec: LayerSpec) -> Iterator[str]:
    path = name.split(".")
    for i in range(len(path)):
        parent = network.get_submodule(".".join(path[:i]))
        if isinstance(parent, (nn.ModuleList, nn.ModuleDict)) or (i == len(path) - 1 and spec.role == "norm"):
            for key, _ in parent.named_children():
                if key != path[i]:
                    yield ".".join([*path[:i], key, *path[i + 1 :]])


def _alike(layer: nn.Module, spec: LayerSpec, network: nn.Module, name: str) -> bool:
    sibling = network.get_submodule(name)
    other = describe_layer(sibling)
    if type(sibling) is not type(layer) or other is None:
        return False
    return (other.in_channels, other.out_channels, other.blocks) == (spec.in_channels, spec.out_channels, spec.blocks)


def _common(ids: Sequence[Ids]) -> Ids | None:
    return ids[0] if ids and all(np.array_equal(x, ids[0]) for x in ids) else None
