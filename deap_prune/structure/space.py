"""The pruning space of a network: groups of coupled filters, and the layers in which each channel occurs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deap_prune.arguments import checked
from deap_prune.display import html_table, short
from deap_prune.errors import MaskError, did_you_mean
from deap_prune.structure.cost_polynomial import Activations, CostPolynomial, LatencyModel
from deap_prune.structure.masks import Masks
from deap_prune.structure.mixing import MixingCall

Ids = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Member:
    """A layer in which channels of a group occur.

    Attributes:
        layer: Qualified module name.
        role: ``"filter"`` (its rows make the channels), ``"norm"`` (scales and shifts them), ``"reader"`` (its columns
            read them) or ``"other"``.
        positions: Positions of each channel in the layer, shape (group.size, occurrences of one channel).
    """

    layer: str
    role: Literal["filter", "norm", "reader", "other"]
    positions: Ids


@dataclass(frozen=True, eq=False)
class FilterGroup:
    """Coupled filters: entry i of a mask prunes filter i in every layer of the group.

    Attributes:
        name: Name of the first layer that produces the channels.
        size: Number of filters.
        start: Id of the first channel; the ids of a group are consecutive.
        blocks: Number of equal parts that must keep the same number of filters (grouped convolutions, GroupNorm).
        members: Layers in which the channels occur.
    """

    name: str
    size: int
    start: int
    blocks: int
    members: tuple[Member, ...]

    @cached_property
    def key(self) -> Hashable:
        """Equal for groups of the same channels, in spaces of one network."""
        return self.size, self.blocks, tuple((m.layer, m.role, m.positions.tobytes()) for m in self.members)

    def layers(self, role: str) -> tuple[Member, ...]:
        """Members with this role."""
        return tuple(m for m in self.members if m.role == role)

    def __str__(self) -> str:
        roles = ("filter", "norm", "reader")
        parts = [f"{r}s: {', '.join(m.layer for m in self.layers(r))}" for r in roles if self.layers(r)]
        blocks = f" in {self.blocks} blocks" if self.blocks > 1 else ""
        return f"{self.name} ({self.size} filters{blocks}) " + "; ".join(parts)

    def __repr__(self) -> str:
        return short([f"FilterGroup({self})"], "print(group)")


@dataclass(frozen=True)
class Refusal:
    """Output channels of a layer that stay dense.

    Attributes:
        layer: Qualified module name.
        channels: Number of channels.
        reason: Why they stay dense.
    """

    layer: str
    channels: int
    reason: str


@dataclass(frozen=True, eq=False)
class LayerChannels:
    """A layer with the ids of its input and output channels (-1: dense).

    Attributes:
        name: Qualified module name, or parameter name where ``dim`` is set.
        inputs: Ids of the input channels, shape (in_channels,).
        outputs: Ids of the output channels, shape (out_channels,).
        dim: Channel dimension of a parameter that belongs to no known layer; None for layers.
        carries: Whether the layer is applied along channels of another one, and so has fewer results under a mask.
    """

    name: str
    inputs: Ids
    outputs: Ids
    dim: int | None = None
    carries: bool = False


@dataclass(frozen=True, eq=False)
class WidthAttribute:
    """An attribute of a module that holds a number of channels; slim rewrites it.

    Attributes:
        module: Qualified module name.
        attribute: Name of the attribute, an integer or a tuple or list of them.
        index: Position in the tuple or list; None for an integer.
        ids: The channels that it counts (-1: dense).
    """

    module: str
    attribute: str
    index: int | None
    ids: Ids

    def __str__(self) -> str:
        place = "" if self.index is None else f"[{self.index}]"
        return ".".join(filter(None, (self.module, self.attribute))) + place


@dataclass(frozen=True, eq=False)
class PruningSpace:
    """All groups of a network. ``print(space)`` explains the couplings and the refusals.

    Attributes:
        groups: In order of execution.
        refused: Channels that stay dense, with reasons.
        layers: Every layer that ran, in order of first use.
        flops_of: Multiply-adds from kept counts, shape (..., groups) -> (...).
        params_of: Parameters from kept counts, likewise.
        uncounted: Operators that fvcore does not count, with the number of calls.
        cost_varies: Whether the cost depends on values (the number of detections); it is that of the example inputs.
        idle: Layers that ran neither in eval mode nor in training.
        widths: Attributes of modules that hold a width and are rewritten by slim.
        idle_layers: Channels of the idle layers that slim narrows like their siblings; the others it leaves unchanged.
        activations: Bytes of the activations of one sample in eval mode, from kept counts.
        mixing: Calls of torch functions outside of the layers that mix channels; see :class:`MixingCall`.
        latency_of: Milliseconds from kept counts, if a latency table is attached (``table.on(space)``).
    """

    groups: tuple[FilterGroup, ...]
    refused: tuple[Refusal, ...]
    layers: tuple[LayerChannels, ...]
    flops_of: CostPolynomial
    params_of: CostPolynomial
    uncounted: Mapping[str, int] = field(default_factory=dict)
    idle: tuple[str, ...] = ()
    cost_varies: bool = False
    idle_layers: tuple[LayerChannels, ...] = ()
    widths: tuple[WidthAttribute, ...] = ()
    activations: Activations | None = None
    mixing: tuple[MixingCall, ...] = ()
    latency_of: LatencyModel | None = None

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Number of filters of each group, shape (groups,)."""
        return np.array([g.size for g in self.groups], dtype=np.int64)

    @cached_property
    def flops(self) -> int:
        """Multiply-adds of the dense network, one sample."""
        return int(self.flops_of(self.sizes))

    @cached_property
    def params(self) -> int:
        """Parameters of the dense network."""
        return int(self.params_of(self.sizes))

    @cached_property
    def min_flops(self) -> int:
        """Multiply-adds if every group keeps one filter per block."""
        return int(self.flops_of([g.blocks for g in self.groups]))

    @cached_property
    def half_flops(self) -> int:
        """Multiply-adds if every group keeps half of its filters (at least one per block)."""
        return int(self.flops_of([g.blocks * max(1, round(g.size / g.blocks / 2)) for g in self.groups]))

    @cached_property
    def prunable_flops(self) -> int:
        """Multiply-adds of the operators whose input or output channels can shrink."""
        return self.flops_of.variable(self.sizes)

    def group(self, name: str) -> FilterGroup:
        """The group of this name.

        Raises:
            MaskError: If there is no such group.
        """
        number = self._numbers.get(name)
        if number is not None:
            return self.groups[number]
        advice = did_you_mean(name, [g.name for g in self.groups], lists="space.groups")
        raise MaskError(f"no filter group '{name}' in this space (masks of another network?); {advice}")

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {group.name: number for number, group in enumerate(self.groups)}

    def kept(self, masks: Masks) -> NDArray[np.bool_]:
        """True for the channel ids that stay, shape (channels + 1,); the last entry, for id -1, is True.

        A group without a mask stays dense.

        Raises:
            MaskError: If a group is unknown, a mask has the wrong length or keeps no filter, or its blocks differ.
        """
        self.kept_counts(masks)  # raises if the masks do not fit
        flat = np.ones(int(self.sizes.sum()) + 1, dtype=np.bool_)
        for name, keep in masks.items():
            group = self.group(name)
            flat[group.start : group.start + group.size] = keep
        return flat

    def kept_counts(self, masks: Masks) -> NDArray[np.int64]:
        """Number of filters that each group keeps, shape (groups,).

        Raises:
            MaskError: As for :meth:`kept`.
        """
        if not isinstance(masks, Masks):
            raise MaskError(f"masks is a {type(masks).__name__}; give dp.Masks (of a solution: solution.masks)")
        counts, numbers = self.sizes.copy(), self._numbers
        for name, keep in masks.items():
            number = numbers.get(name, -1)
            counts[number] = _count(self.groups[number] if number >= 0 else self.group(name), keep)
        return counts

    def __repr__(self) -> str:
        dense = sum(refusal.channels for refusal in self.refused)
        head = [f"PruningSpace: {self._summary()}", f"  {dense} channels of {len(self.refused)} layers stay dense"]
        return short([*head, *(f"  {group}" for group in self.groups)], "print(space), which gives reasons too")

    def _repr_html_(self) -> str:
        rows = [
            [g.name, str(g.size), *(", ".join(m.layer for m in g.layers(r)) for r in ("filter", "norm", "reader"))]
            for g in self.groups
        ]
        rows += [[r.layer, f"{r.channels}, dense", r.reason, "", ""] for r in self.refused]
        return html_table(self._summary(), ("group", "filters", "filter layers", "norms", "readers"), rows)

    def _summary(self) -> str:
        return (
            f"{len(self.groups)} groups, {int(self.sizes.sum())} filters; {self.flops:,} flops "
            f"(1 multiply-add = 1 flop; {self.prunable_flops / self.flops:.1%} can shrink, "
            f"{self.half_flops / self.flops:.1%} stay with half of every group, at least "
            f"{self.min_flops / self.flops:.1%}), {self.params:,} parameters"
        )

    def __str__(self) -> str:
        lines = [self._summary()]
        lines += [f"  {group}" for group in self.groups]
        reasons: dict[str, list[Refusal]] = {}
        for refusal in self.refused:
            reasons.setdefault(refusal.reason, []).append(refusal)
        lines += [
            f"  dense: {', '.join(f'{r.layer} ({r.channels})' for r in refusals)}: {reason}"
            for reason, refusals in reasons.items()
        ]
        if self.uncounted:
            lines.append(
                "  not counted by fvcore: " + ", ".join(f"{k} x{n}" for k, n in Counter(self.uncounted).items())
            )
        if self.cost_varies:
            lines.append("  the cost depends on values; it was counted on the example inputs")
        if self.widths:
            lines.append(f"  attributes that slim rewrites: {', '.join(map(str, self.widths))}")
        alike = [entry.name for entry in self.idle_layers]
        if alike:
            lines.append(f"  did not run, narrowed like their siblings: {', '.join(alike)}")
        if unchanged := [name for name in self.idle if name not in alike]:
            lines.append(f"  did not run, left unchanged: {', '.join(unchanged)}")
        return "\n".join(lines)


def _count(group: FilterGroup, keep: NDArray[np.bool_]) -> int:
    """Number of filters that a mask keeps, if it fits the group."""
    if keep.shape != (group.size,):
        raise MaskError(f"the mask of '{group.name}' has {len(keep)} entries; the group has {group.size} filters")
    number = int(np.count_nonzero(keep))
    if number == 0 or group.blocks > 1:
        counts = keep.reshape(group.blocks, -1).sum(axis=1)
        if counts.min() == 0 or counts.min() != counts.max():
            every = "every block" if group.blocks > 1 else "it"
            raise MaskError(
                f"the mask of '{group.name}' keeps {counts.tolist()} filters (by block); {every} must keep at least one"
                + (", and all blocks the same number" if group.blocks > 1 else "")
            )
    return number


@checked
def flops(space: PruningSpace, masks: Masks) -> int:
    """Multiply-adds of the slimmed network for one sample, as fvcore counts them.

    Examples:
        >>> space.flops, dp.flops(space, dp.Masks.random(space, keep=0.5))
        (15744, 6144)

    Raises:
        MaskError: If the masks don't fit the space.
    """
    return int(space.flops_of(space.kept_counts(masks)))


@checked
def params(space: PruningSpace, masks: Masks) -> int:
    """Parameters of the slimmed network.

    Examples:
        >>> space.params, dp.params(space, dp.Masks.random(space, keep=0.5))
        (1163, 476)

    Raises:
        MaskError: If the masks don't fit the space.
    """
    return int(space.params_of(space.kept_counts(masks)))
