"""Attributes that hold a width (``self.channels``, ``self.split_sizes``): found by rewriting them under the proof."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

import numpy as np
from torch import nn

from deap_prune.errors import ModelError, did_you_mean
from deap_prune.structure.layers import describe_layer
from deap_prune.structure.space import Ids, LayerChannels, PruningSpace, WidthAttribute
from deap_prune.structure.tracing.proof import Proof

MOST_TRIALS, MOST_CANDIDATES = 4, 4  # proofs of one trace, and for one group, that look for attributes
NO_WIDTHS = re.compile("kernel|stride|pad|dilat|head|class|patch|img|image|window|pool|grid|depth|groups|scale|ratio")


@dataclass(frozen=True)
class Pattern:
    """An attribute of a class of modules, and the channels that it counts.

    Attributes:
        kind: Class of the module.
        attribute: Name of the attribute.
        layer: Name of the layer, relative to the module or (with ``"^"`` in front) to its parent.
        side: ``"inputs"`` or ``"outputs"`` of the layer.
    """

    kind: type[nn.Module]
    attribute: str
    layer: str
    side: str

    def apply(self, network: nn.Module, channels: Mapping[str, LayerChannels]) -> Iterator[WidthAttribute]:
        """The attributes of all modules that match."""
        for name, module in network.named_modules():
            if type(module) is not self.kind:
                continue
            base = name.rpartition(".")[0] if self.layer.startswith("^") else name
            entry = channels.get(".".join(filter(None, (base, self.layer.removeprefix("^")))))
            if entry is not None:
                yield from counted(name, module, self.attribute, getattr(entry, self.side))


def counted(name: str, module: nn.Module, attribute: str, ids: Ids) -> Iterator[WidthAttribute]:
    """The attribute as the width of these channels, or of equal or consecutive parts of them, if its value fits."""
    value = getattr(module, attribute, None)
    if _is_width(value):
        if len(ids) % value == 0:
            yield WidthAttribute(name, attribute, None, ids[:value])
    elif isinstance(value, (tuple, list)) and value and all(_is_width(v) for v in value) and sum(value) == len(ids):
        stops = np.cumsum(value)
        for i, (stop, width) in enumerate(zip(stops, value, strict=True)):
            yield WidthAttribute(name, attribute, i, ids[stop - width : stop])


def _is_width(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 1


class WidthSearch:
    """Finds the attributes whose rewriting makes the proof of a group hold.

    Attributes:
        patterns: Those that were found, for all modules of their class.
    """

    def __init__(self, network: nn.Module, proof: Proof, declared: Sequence[tuple[str, str]] = ()) -> None:
        self.network, self.proof, self.declared = network, proof, declared
        self.patterns: list[Pattern] = []
        self._tried: set[Pattern] = set()
        self._trials = 0

    def extended(self, space: PruningSpace) -> PruningSpace:
        """The space with the declared attributes and with all that match the patterns."""
        channels = {entry.name: entry for entry in space.layers if entry.dim is None}
        widths = {}
        for path, layer in self.declared:
            name, _, attribute = path.rpartition(".")
            ids = channels[layer.removesuffix(":in")]
            side = ids.inputs if layer.endswith(":in") else ids.outputs
            for width in counted(name, self.network.get_submodule(name), attribute, side):
                widths[width.module, width.attribute, width.index] = width
        for pattern in self.patterns:
            for width in pattern.apply(self.network, channels):
                widths.setdefault((width.module, width.attribute, width.index), width)
        return replace(space, widths=tuple(widths.values())) if widths else space

    def repair(self, space: PruningSpace, group: str) -> bool:
        """Look for a pattern that makes the proof of a failing group hold; True if there is one."""
        channels = {entry.name: entry for entry in space.layers if entry.dim is None}
        candidates = [p for p in self._candidates(space, group, channels) if p not in self.patterns][:MOST_CANDIDATES]
        options = [[p] for p in candidates] + ([candidates] if len(candidates) > 1 else [])
        for option in options:
            if (set(option) <= self._tried and len(option) == 1) or self._trials >= MOST_TRIALS:
                continue
            self._tried |= set(option)
            self._trials += 1
            before = self.patterns
            self.patterns = [*before, *option]
            if not self.proof.failure(self.extended(space), [group], counted=False):
                return True
            self.patterns = before
        return False

    def _candidates(self, space: PruningSpace, group: str, channels: Mapping[str, LayerChannels]) -> list[Pattern]:
        members = [member.layer for member in space.group(group).members]
        found: dict[Pattern, None] = {}
        own = set(range(space.group(group).start, space.group(group).start + space.group(group).size))
        for name in _modules_near(self.network, members):
            module = self.network.get_submodule(name)
            if describe_layer(module) is not None:
                continue
            for attribute, value in vars(module).items():
                if (
                    attribute.startswith("_")
                    or NO_WIDTHS.search(attribute)
                    or not (_is_width(value) or isinstance(value, (tuple, list)))
                ):
                    continue
                for layer in members:
                    relative = _relative(name, layer)
                    for side in ("outputs", "inputs"):
                        ids = getattr(channels[layer], side)
                        matches = list(counted(name, module, attribute, ids))
                        if relative and any(own & set(match.ids.tolist()) for match in matches):
                            found.setdefault(Pattern(type(module), attribute, relative, side))
        return list(found)


def _modules_near(network: nn.Module, layers: Iterable[str]) -> list[str]:
    """Modules that hold the layers, nearest first, and the other children of these modules."""
    parents: dict[str, None] = {}
    for layer in layers:
        path = layer.split(".")[:-1]
        while True:
            parents.setdefault(".".join(path))
            if not path:
                break
            path = path[:-1]
    nearest = sorted(parents, key=lambda name: -name.count(".") - bool(name))
    near = dict.fromkeys(nearest)
    for name in nearest:
        for child, module in network.get_submodule(name).named_children():
            if not any(True for _ in module.children()):
                near.setdefault(f"{name}.{child}" if name else child)
    return list(near)


def _relative(module: str, layer: str) -> str:
    """Name of a layer relative to a module or to its parent, empty if it is in neither."""
    if not module or layer.startswith(f"{module}."):
        return layer[len(module) + 1 :] if module else layer
    parent = module.rpartition(".")[0]
    if not parent or layer.startswith(f"{parent}."):
        return "^" + (layer[len(parent) + 1 :] if parent else layer)
    return ""


def declared_widths(network: nn.Module, widths: Mapping[str, str]) -> list[tuple[str, str]]:
    """The attributes that the user declares.

    Raises:
        ModelError: If a module, attribute or layer does not exist.
    """
    modules = dict(network.named_modules())
    for path, layer in widths.items():
        name, _, attribute = path.rpartition(".")
        if name not in modules or not hasattr(modules[name], attribute):
            raise ModelError(f"widths names '{path}', which is no attribute of a module of the network")
        if layer.removesuffix(":in") not in modules:
            raise ModelError(f"widths names '{layer}', which is no layer; {did_you_mean(layer, list(modules))}")
    return list(widths.items())
