"""Attributes that hold a width (``self.channels``, ``self.split_sizes``): found by rewriting them under the proof."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import numpy as np
from torch import nn

from deap_prune.errors import ModelError, did_you_mean
from deap_prune.structure.layers import describe_layer
from deap_prune.structure.space import Ids, LayerChannels, PruningSpace, WidthAttribute
from deap_prune.structure.tracing.proof import Proof

MOST_TRIALS, MOST_CANDIDATES = 12, 4  # proofs in a row without success, and patterns for one group
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

    def apply(self, search: WidthSearch, channels: Mapping[str, LayerChannels]) -> Iterator[WidthAttribute]:
        """The attributes of all modules that match."""
        for name, module in search.network.named_modules():
            if type(module) is not self.kind:
                continue
            base = name.rpartition(".")[0] if self.layer.startswith("^") else name
            entry = channels.get(".".join(filter(None, (base, self.layer.removeprefix("^")))))
            if entry is not None:
                yield from counted(name, module, self.attribute, getattr(entry, self.side))


@dataclass(frozen=True)
class Observed:
    """An attribute of a class of modules whose value was the size of a part or of a view of channels."""

    kind: type[nn.Module]
    attribute: str

    def apply(self, search: WidthSearch, channels: Mapping[str, LayerChannels]) -> Iterator[WidthAttribute]:
        """The attributes of all modules that match."""
        for width in search.observed:
            if width.attribute == self.attribute and type(search.network.get_submodule(width.module)) is self.kind:
                yield width


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


def may_hold_widths(attribute: str, value: object) -> bool:
    """Whether an attribute of a module may hold a number of channels, by its name and type."""
    return not attribute.startswith("_") and not NO_WIDTHS.search(attribute) and holds_sizes(value)


def holds_sizes(value: object) -> bool:
    """Whether a value is an integer above 1, or a sequence of integers with one."""
    whole = isinstance(value, (tuple, list)) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    return _is_width(value) or (isinstance(value, (tuple, list)) and whole and any(map(_is_width, value)))


def _is_width(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 1


class WidthSearch:
    """Finds the attributes whose rewriting makes the proof of a group hold.

    Attributes:
        rules: Those that were found, for all modules of their class.
        observed: Attributes that equal the size of a part or a view of channels in the traced pass.
    """

    def __init__(self, network: nn.Module, proof: Proof, declared: Sequence[tuple[str, str]] = ()) -> None:
        self.network, self.proof, self.declared = network, proof, declared
        self.rules: list[Pattern | Observed] = []
        self.observed: list[WidthAttribute] = []
        self._tried: set[frozenset[Pattern | Observed]] = set()
        self._trials = 0

    def extended(self, space: PruningSpace) -> PruningSpace:
        """The space with the declared attributes and with all that match the rules."""
        channels = {entry.name: entry for entry in space.layers if entry.dim is None}
        widths = {}
        for path, layer in self.declared:
            name, _, attribute = path.rpartition(".")
            ids = channels[layer.removesuffix(":in")]
            side = ids.inputs if layer.endswith(":in") else ids.outputs
            for width in counted(name, self.network.get_submodule(name), attribute, side):
                widths[width.module, width.attribute, width.index] = width
        for rule in self.rules:
            for width in rule.apply(self, channels):
                widths.setdefault((width.module, width.attribute, width.index), width)
        return replace(space, widths=tuple(widths.values())) if widths else space

    def repair_all(self, space: PruningSpace, names: Sequence[str]) -> bool:
        """Whether the proof of all groups holds with all observed attributes, which are kept then."""
        before = self.rules
        rules = dict.fromkeys(Observed(type(self.network.get_submodule(w.module)), w.attribute) for w in self.observed)
        added = [rule for rule in rules if rule not in before]
        self.rules = [*before, *added]
        if added and not self.proof.failure(self.extended(space), names):
            return True
        self.rules = before
        return False

    def repair(self, space: PruningSpace, group: str, *, counted: bool = False) -> bool:
        """Look for rules that make the proof of a failing group hold; True if there are some.

        Args:
            space: The space.
            group: Name of the group.
            counted: Whether the proof compares the cost as well.
        """
        channels = {entry.name: entry for entry in space.layers if entry.dim is None}
        patterns: list[Pattern | Observed] = [*self._patterns(space, group, channels)]
        observed: list[Pattern | Observed] = [*self._observed(space, group)]
        for option in _options(observed, patterns):
            key = frozenset(option)
            if key in self._tried or self._trials >= MOST_TRIALS:
                continue
            self._tried.add(key)
            self._trials += 1
            before = self.rules
            self.rules = [*before, *option]
            if not self.proof.failure(self.extended(space), [group], counted=counted):
                self._trials = 0
                return True
            self.rules = before
        return False

    def _observed(self, space: PruningSpace, group: str) -> list[Observed]:
        start, size = space.group(group).start, space.group(group).size
        near = [w for w in self.observed if ((w.ids >= start) & (w.ids < start + size)).any()]
        rules = dict.fromkeys(Observed(type(self.network.get_submodule(w.module)), w.attribute) for w in near)
        return [rule for rule in rules if rule not in self.rules]

    def _patterns(self, space: PruningSpace, group: str, channels: Mapping[str, LayerChannels]) -> list[Pattern]:
        return [p for p in self._candidates(space, group, channels) if p not in self.rules][:MOST_CANDIDATES]

    def _candidates(self, space: PruningSpace, group: str, channels: Mapping[str, LayerChannels]) -> list[Pattern]:
        members = [member.layer for member in space.group(group).members]
        found: dict[Pattern, None] = {}
        own = set(range(space.group(group).start, space.group(group).start + space.group(group).size))
        for name in _modules_near(self.network, members):
            module = self.network.get_submodule(name)
            if describe_layer(module) is not None:
                continue
            for attribute, value in vars(module).items():
                if not may_hold_widths(attribute, value):
                    continue
                for layer in members:
                    relative = _relative(name, layer)
                    for side in ("outputs", "inputs"):
                        ids = getattr(channels[layer], side)
                        matches = list(counted(name, module, attribute, ids))
                        if relative and any(own & set(match.ids.tolist()) for match in matches):
                            found.setdefault(Pattern(type(module), attribute, relative, side))
        return list(found)


def _options(observed: list[Any], patterns: list[Any]) -> Iterator[list[Any]]:
    """Rules to try together, most likely first: all that were observed, each of them, each pattern, all together."""
    every = [observed, *([rule] for rule in observed), *([rule] for rule in patterns), patterns, observed + patterns]
    yield from (option for option in every if option)


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
